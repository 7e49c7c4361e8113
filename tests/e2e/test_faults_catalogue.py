"""The catalogue damaged, deleted, or of a newer version: said clearly, the data path goes on, and a rebuild brings all back."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.ledger import BLOCK_BYTES, Ledger
from tests.e2e.site import MIB, LiveSite, contents, until

pytestmark = pytest.mark.e2e
BLOCKS = 256


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site with a group at work and one that was deleted and is retained."""
    with LiveSite(tmp_path_factory.mktemp("lost")) as site:
        site.start()
        site.protect_volume("shop", BLOCKS * BLOCK_BYTES)
        site.protect_volume("old", MIB)
        site.dpac("group", "delete", "old", "--yes")
        yield site
        site.print_logs()


def restart_control(site: LiveSite) -> None:
    """Kill control and wait until another one has begun."""
    killed = site.kill("control")
    until(lambda: site.pids().get("control") not in (None, killed), "control is started again")
    until(lambda: site.child("control").state == "serving", "control answers")


def known(site: LiveSite) -> object:
    """What the site says that must not change by a rebuild."""
    groups = [*site.rest.groups(), *site.rest.groups(lifecycle="retained")]
    return [group.model_dump() for group in groups], [target.model_dump() for target in site.rest.targets()]


def rebuild(site: LiveSite) -> object:
    """`dpac catalogue rebuild`, then wait until control has taken it up."""
    told = site.dpac_json("catalogue", "rebuild", "--data", str(site.data))
    until(lambda: site.dpac("status", status=None).returncode == 0, "control has taken the catalogue up")
    return told


def scramble(path: Path) -> None:
    """Overwrite all pages but the first, as a bad disk would."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def write_newer(path: Path) -> None:
    """Make it look like one of a later version."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")


def test_a_damaged_catalogue_is_said_and_rebuilt_while_clients_write(site: LiveSite, seed: int) -> None:
    """Nobody is told that a group is gone; afterwards groups (retained too), targets, mounts and the admin token are as before."""
    before = known(site)
    site.dpac("token", "create", "robot", "--scope", "read")
    mount = site.rest.mount("shop")
    file = site.site.catalogue_file
    with Ledger(site.uri("shop/disk"), BLOCKS, seed) as ledger:
        ledger.wait_for(50)
        scramble(file)
        restart_control(site)
        told = site.dpac("status", status=20).stderr
        assert f"{file} is damaged" in told
        assert "dpac catalogue rebuild --data" in told
        assert "is damaged" in site.dpac("group", "show", "shop", status=20).stderr
        assert "is damaged" in site.dpac("serve", "--detach", "--data", str(site.data), status=20).stderr
        ledger.wait_for(50)
        done = rebuild(site)
        ledger.wait_for(50)
    assert isinstance(done, dict)
    assert (done["groups"], done["retained"], done["mounts"], done["notes"]) == (["shop"], ["old"], [mount.id], [])
    assert Path(done["aside"]).read_bytes()[4096:8192] == b"\xa5" * 4096
    assert known(site) == before
    assert site.rest.tokens() == []
    assert ledger.problems(contents(site.uri("shop/disk"))) == []
    site.rest.unmount(mount.id)
    with site.mounted("old", "latest") as old:
        assert len(contents(old.members["disk"])) == MIB
    until(lambda: site.rest.group_status("shop").protected, "shop is protected")


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_lost_catalogue_is_not_taken_for_an_empty_site(site: LiveSite, how: str) -> None:
    """An empty list of groups would make `pulumi refresh` forget them; a deletion under a running control is seen within seconds."""
    before = known(site)
    file = site.site.catalogue_file
    if how == "deleted":
        file.unlink()
        until(lambda: site.dpac("status", status=None).returncode == 20, "the loss is seen", 90)
    else:
        for part in ("-wal", "-shm"):
            file.with_name(file.name + part).unlink(missing_ok=True)
        os.truncate(file, 0)
        restart_control(site)
    assert ("is missing" if how == "deleted" else "is empty") in site.dpac("status", status=20).stderr
    rebuild(site)
    assert known(site) == before


def test_a_catalogue_of_a_newer_version_is_left_alone(site: LiveSite) -> None:
    """The message names what to upgrade, a rebuild refuses, and the old one taken back is taken up."""
    before = known(site)
    file = site.site.catalogue_file
    restart_control(site)
    with closing(sqlite3.connect(file)) as database:
        ((ours,),) = database.execute("SELECT version_num FROM alembic_version")
    write_newer(file)
    restart_control(site)
    assert "was written by a newer dpac" in site.dpac("status", status=7).stderr
    assert "was written by a newer dpac" in site.dpac("catalogue", "rebuild", "--data", str(site.data), status=7).stderr
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (ours,))
    until(lambda: site.dpac("status", status=None).returncode == 0, "control has taken the catalogue up")
    assert known(site) == before


def test_a_whole_catalogue_is_not_rebuilt(site: LiveSite) -> None:
    """Neither while the backend uses it nor when it is stopped."""
    assert "uses the catalogue" in site.dpac("catalogue", "rebuild", "--data", str(site.data), status=4).stderr
    site.dpac("stop", "--data", str(site.data))
    assert "is whole" in site.dpac("catalogue", "rebuild", "--data", str(site.data), status=4).stderr
    site.start()


def test_what_the_data_folder_lost_comes_from_the_target(site: LiveSite) -> None:
    """An assignment that is damaged too is read from the repository: same uid, same export, still served and protected."""
    before = known(site)
    uid = site.rest.group("shop").uid
    assignment = site.site.group(uid) / "assignment.json"
    site.dpac("stop", "--data", str(site.data))
    assignment.write_text("{")
    site.site.catalogue_file.unlink()
    site.dpac("serve", "--detach", "--data", str(site.data), "--workers", "1", status=20)
    done = rebuild(site)
    assert isinstance(done, dict)
    assert done["groups"] == ["shop"]
    assert [note for note in done["notes"] if "at target copies only" in note]
    assert known(site) == before
    until(lambda: site.rest.group_status("shop").protected, "shop is protected again", 90)
    assert json.loads(assignment.read_text())["group_uid"] == uid
