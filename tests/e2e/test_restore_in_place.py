"""Restore in place, by the command line of a real site: a member goes back, forth again, and survives kills on the way."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import DpacError
from dpac_api.models import Operation, Phase
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, until, write

pytestmark = pytest.mark.e2e
SIZE = 16 * MIB
BLOCK = 4096


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site, with its logs in the report of a failure."""
    with LiveSite(tmp_path / "live") as site:
        site.start()
        yield site
        site.print_logs()


def put(site: LiveSite, blocks: dict[int, bytes]) -> None:
    """Write to the volume of `shop`: offset -> data."""
    with connected(site.uri("shop/disk")) as disk:
        for offset, data in blocks.items():
            write(disk, offset, data)
        flush(disk)


def mark(site: LiveSite, tag: str) -> None:
    """A tagged checkpoint, at the target."""
    site.dpac("checkpoint", "shop", "--tag", tag)
    site.wait_for_checkpoint("shop", f"tag:{tag}")


def at_target(site: LiveSite, selector: str) -> bytes:
    """The volume as a checkpoint at the target has it."""
    with site.mounted("shop", selector) as mount:
        return contents(mount.members["disk"])


def back(site: LiveSite, selector: str) -> Any:
    """`dpac restore --in-place`; its report."""
    done = site.dpac_json("restore", "shop", "--member", "disk", "--at", selector, "--in-place", "--yes")
    assert done["phase"] == "Succeeded"
    return done["result"]


def test_a_volume_goes_back_to_a_checkpoint_and_forth_again(site: LiveSite) -> None:
    """Only what differs is written; the target follows by the log; the safety checkpoint undoes it."""
    chance = random.Random(7)
    site.protect_volume("shop", SIZE)
    put(site, {at * MIB: chance.randbytes(MIB // 2) for at in range(8)})
    mark(site, "good")
    good = contents(site.uri("shop/disk"))
    put(
        site,
        {
            0: chance.randbytes(BLOCK),  # changed
            2 * MIB: good[2 * MIB : 2 * MIB + MIB // 2],  # written again as it was
            12 * MIB: chance.randbytes(3 * BLOCK),  # nothing lay there
        },
    )
    bad = contents(site.uri("shop/disk"))
    site.wait_for_checkpoint("shop", after=site.rest.checkpoint("shop", "tag:good").time)
    mark(site, "bad")

    shown = site.dpac_json("restore", "shop", "--member", "disk", "--at", "tag:good", "--in-place", "--dry-run")
    assert (0, BLOCK) in {(item["offset"], item["length"]) for item in shown["items"]}
    assert contents(site.uri("shop/disk")) == bad

    before_lsn = site.rest.group_status("shop").head_lsn
    report = back(site, "tag:good")
    journalled = site.rest.group_status("shop").head_lsn - before_lsn
    print(f"{journalled} bytes were journalled to go back")
    assert (report["bytes_written"], report["bytes_zeroed"]) == (BLOCK, 3 * BLOCK)
    assert journalled < 32 * BLOCK, "what did not differ was written too"
    assert contents(site.uri("shop/disk")) == good
    operation = report["safety_tag"].removeprefix("before-restore-")
    assert at_target(site, f"tag:after-restore-{operation}") == good
    assert at_target(site, report["safety_checkpoint"]) == bad
    assert site.rest.checkpoint("shop", f"tag:{report['safety_tag']}").id == report["safety_checkpoint"]

    again = back(site, f"tag:{report['safety_tag']}")
    assert again["bytes_written"] == 4 * BLOCK
    assert contents(site.uri("shop/disk")) == bad
    assert at_target(site, "tag:good") == good


def test_connected_clients_are_in_the_way_until_they_are_dropped(site: LiveSite) -> None:
    """Refused with nothing changed; forced, the client loses its connection and a new one finds the old content."""
    site.protect_volume("shop", SIZE)
    put(site, {0: b"good" * 1024})
    mark(site, "good")
    put(site, {0: b"bad!" * 1024})
    words = ("restore", "shop", "--member", "disk", "--at", "tag:good", "--in-place", "--yes")
    with connected(site.uri("shop/disk")) as disk:
        refused = site.dpac(*words, status=1)
        assert "1 client is connected" in refused.stderr
        assert "--force-disconnect" in refused.stderr
        write(disk, BLOCK, b"more" * 1024)
        done = site.dpac(*words, "--force-disconnect")
        assert "To undo: dpac restore shop --member disk --in-place --at tag:before-restore-op-" in done.stdout
        with pytest.raises((OSError, EOFError, AssertionError)):
            write(disk, 0, b"late" * 1024)
    now = contents(site.uri("shop/disk"))
    assert now[: 2 * BLOCK] == b"good" * 1024 + bytes(BLOCK)


@pytest.mark.parametrize("victim", ["worker-0", "control"])
def test_killed_half_way_it_ends_by_itself(site: LiveSite, victim: str) -> None:
    """A control process that died finds the worker's work done, a worker that died has it done again; the tag undoes all."""
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    size = 192 * MIB
    site.protect_volume("shop", size)
    put(site, {at * MIB: chance.randbytes(MIB) for at in range(size // MIB)})
    mark(site, "good")
    good = contents(site.uri("shop/disk"))
    put(site, {at * MIB: chance.randbytes(MIB) for at in range(size // MIB)})
    bad = contents(site.uri("shop/disk"))

    begun = site.rest.restore("shop", member="disk", at="tag:good", in_place=True)
    until(lambda: writing(site, begun), "it writes")
    head_lsn = site.rest.group_status("shop").head_lsn
    until(lambda: site.rest.group_status("shop").head_lsn > head_lsn + MIB, "some of it is written")
    site.kill(victim)
    ended: list[Operation] = []

    def over() -> bool:
        with suppress(DpacError):
            ended[:] = [site.rest.operation(begun.id)]
        return bool(ended) and ended[0].phase in (Phase.FAILED, Phase.SUCCEEDED)

    until(over, "the operation has ended")
    assert ended[0].phase == Phase.SUCCEEDED, ended[0].error
    assert ended[0].result["bytes_written"] > 0
    until(lambda: served(site), "the export is served")
    assert contents(site.uri("shop/disk")) == good
    back(site, f"tag:before-restore-{begun.id}")
    assert contents(site.uri("shop/disk")) == bad


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that can be told of a tree, but for databases' logs, which come and go."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        key = str(path.relative_to(root))
        found[key] = (oct(status.st_mode), status.st_uid, status.st_mtime_ns, status.st_nlink, content)
    return found


def rows_in(database: Path) -> list[int]:
    """The rows of a sound database."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row for (row,) in opened.execute("SELECT id FROM orders ORDER BY id")]


APPLICATION = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, text TEXT)")
for row in range(int(sys.argv[2]), int(sys.argv[3])):
    database.execute("INSERT INTO orders VALUES (?, ?)", (row, "x" * 200))
print("written", flush=True)
sys.stdin.read(1)
os._exit(1)
"""
"""Leaves its write-ahead log behind, as one that was killed does."""


@contextmanager
def application(database: Path, first: int, end: int) -> Iterator[None]:
    """Has written rows, and has the database open until the end; then it dies."""
    command = [sys.executable, "-c", APPLICATION, str(database), str(first), str(end)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        try:
            yield
        finally:
            process.communicate("x")


def test_a_directory_with_a_database_goes_back_and_forth(site: LiveSite, tmp_path: Path) -> None:
    """Content, links, modes and times are those of the checkpoint, no log of another state stays, and the undo undoes it."""
    data = tmp_path / "data"
    (data / "etc").mkdir(parents=True)
    (data / "etc" / "app.conf").write_text("right")
    (data / "etc" / "same.conf").write_text("stays")
    (data / "one.bin").write_bytes(b"1" * 300_000)
    os.link(data / "one.bin", data / "two.bin")
    (data / "link").symlink_to("etc/app.conf")
    (data / "kind").mkdir()
    (data / "kind" / "inner").write_text("in a folder")
    (data / "run.sh").write_text("#!/bin/sh")
    (data / "run.sh").chmod(0o750)
    with application(data / "orders.db", 0, 100):
        pass
    site.protect("shop", {"data": {"kind": "directory", "path": str(data), "blueprint": "sqlite"}})
    captured(site, "good")
    good = snapshot(data)
    kept = (data / "etc" / "same.conf").stat().st_ino

    (data / "etc" / "app.conf").write_text("wrong and longer")
    (data / "one.bin").unlink()
    (data / "run.sh").chmod(0o700)
    shutil.rmtree(data / "kind")
    (data / "kind").write_text("a file now")
    (data / "new" / "deep").mkdir(parents=True)
    (data / "new" / "deep" / "file").write_text("new")
    words = ("restore", "shop", "--member", "data", "--at", "tag:good", "--in-place", "--yes")
    with application(data / "orders.db", 100, 300):
        refused = site.dpac(*words, status=1)
        assert "orders.db" in refused.stderr
        assert "open for writing" in refused.stderr
    assert (data / "orders.db-wal").stat().st_size > 0
    captured(site, "bad")
    bad = snapshot(data)

    report = site.dpac_json(*words)["result"]
    assert report["paths_removed"] == 3  # new, new/deep, new/deep/file
    assert not (data / "orders.db-wal").exists()
    assert rows_in(data / "orders.db") == list(range(100))
    assert without_database(snapshot(data)) == without_database(good)
    assert (data / "etc" / "same.conf").stat().st_ino == kept
    operation = report["safety_tag"].removeprefix("before-restore-")
    site.wait_for_checkpoint("shop", f"tag:after-restore-{operation}")
    page = site.dpac_json("diff", "shop", "--from", "tag:good", "--to", f"tag:after-restore-{operation}")
    assert {item["path"] for item in page["items"]} <= {"one.bin", "two.bin"}  # another inode

    undone = site.dpac_json(*words[:5], f"tag:{report['safety_tag']}", *words[6:])
    assert undone["phase"] == "Succeeded"
    assert rows_in(data / "orders.db") == list(range(300))
    assert without_database(snapshot(data)) == without_database(bad)


def captured(site: LiveSite, tag: str) -> None:
    """A tagged checkpoint that holds the directory as it is now."""
    now = datetime.now(UTC)

    def seen() -> bool:
        as_of = site.rest.group_status("shop").members["data"].as_of
        return as_of is not None and as_of > now

    until(seen, f"the directory is captured for {tag}")
    mark(site, tag)


def without_database(found: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """But for the database, its logs, and the root, whose times change with these."""
    return {path: what for path, what in found.items() if not path.startswith("orders.db") and path != "."}


def writing(site: LiveSite, operation: Operation) -> bool:
    """Whether it has come to write."""
    found = site.rest.operation(operation.id)
    assert found.phase != Phase.FAILED, found.error
    return found.steps[2].state == "running"


def served(site: LiveSite) -> bool:
    """Whether a client gets in."""
    with suppress(OSError, EOFError, AssertionError), connected(site.uri("shop/disk")):
        return True
    return False
