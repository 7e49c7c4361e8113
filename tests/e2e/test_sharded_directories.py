"""Directories in a group of several shards: quiesced in their shards, mounted, restored, and open again after a kill."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.site import LiveSite, until
from tests.e2e.sqlite_oracle import Application, newest_in
from tests.e2e.test_oracle import nanoseconds

GROUP = "spread"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site of two workers that serves nothing yet."""
    with LiveSite(tmp_path, workers=2) as site:
        site.start()
        yield site
        site.print_logs()


@pytest.mark.e2e
def test_a_database_in_one_shard_and_volumes_in_the_other_are_one_checkpoint(
    site: LiveSite, tmp_path: Path, seed: int
) -> None:
    """A barrier holds all that was committed before it was asked for and nothing issued after it; its directories are mounted
    from their shard, and again after the worker was killed."""
    folder, plain = tmp_path / "shop", tmp_path / "texts"
    folder.mkdir()
    plain.mkdir()
    (plain / "note").write_text("as it is")
    with Application(folder / "log.db", "WAL", seed) as application:
        application.wait_for(20)
        members = {
            "disk": {"kind": "volume", "path": str(tmp_path / "disk.raw"), "size": "1MiB"},
            "shop": {"kind": "directory", "path": str(folder), "blueprint": "sqlite"},
            "texts": {"kind": "directory", "path": str(plain)},
        }
        site.protect(GROUP, members, journal={"shards": 2})
        assert [shard.members for shard in site.rest.group_status(GROUP).shards] == [["disk", "texts"], ["shop"]]
        application.wait_for(20)
        asked_ns = time.time_ns()
        taken = site.rest.take_checkpoint(GROUP, app=True, tag="app")
        application.wait_for(20)
    cuts = {name: cut.kind for name, cut in taken.cuts.items()}
    assert (taken.consistency, cuts) == ("app", {"disk": "barrier", "shop": "barrier", "texts": "observed"})
    checkpoint = site.wait_for_checkpoint(GROUP, "latest-app")
    assert checkpoint.id == taken.id
    with site.mounted(GROUP, checkpoint.id) as mount:
        copy = shutil.copyfile(Path(mount.members["shop"]) / "log.db", tmp_path / "copy.db")
        application.judge(newest_in(copy), asked_ns, nanoseconds(checkpoint))
        before, ours = copy.read_bytes(), site.pids()["worker-0"]
        os.kill(ours, 9)

        def there_again() -> bool:
            try:
                again = Path(mount.members["shop"]) / "log.db"
                return site.pids()["worker-0"] != ours and again.read_bytes() == before
            except OSError:
                return False

        until(there_again, "the directories of both shards are mounted again")
        assert (Path(mount.members["texts"]) / "note").read_text() == "as it is"
    to = tmp_path / "back"
    site.dpac("restore", GROUP, "--at", checkpoint.id, "--member", "shop", "--to", str(to))
    assert (to / "log.db").read_bytes() == before
    site.dpac("drill", GROUP, "--at", checkpoint.id)
