"""A target that is away, empty, full or denied: said by name, the application writing on, and all caught up afterwards."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpac_api.models import Condition, DataState, SlaState
from tests.e2e.ledger import BLOCK_BYTES, Ledger
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, until, write

pytestmark = pytest.mark.e2e
BLOCKS = 256
NOTICED_SECONDS_MAX = 30.0
"""An idle leg notices within this that its target is away (it looks every 15 s)."""


def mount_tmpfs(path: Path, size: str) -> None:
    """A small file system at `path`; skips where this user may not mount."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site with a group whose leg goes to a plain folder, `copies`."""
    with LiveSite(tmp_path_factory.mktemp("targets")) as site:
        site.start()
        site.protect_volume("shop", BLOCKS * BLOCK_BYTES)
        yield site
        site.print_logs()


def condition(site: LiveSite, group: str, kind: str) -> Condition | None:
    """The group's condition of that type, if it holds."""
    found = (each for each in site.rest.group_status(group).conditions if each.type == kind)
    return next(found, None)


def wait_for_condition(site: LiveSite, group: str, kind: str, seconds_max: float = NOTICED_SECONDS_MAX) -> Condition:
    """Until it holds."""
    until(lambda: condition(site, group, kind), f"{group} has the condition {kind}", seconds_max)
    found = condition(site, group, kind)
    assert found is not None
    return found


def assert_caught_up(site: LiveSite, group: str, disk: str = "disk") -> None:
    """Protected again, without a word about its leg, and the newest checkpoint is the volume."""
    until(lambda: site.rest.group_status(group).protected, f"{group} is protected again")
    assert not [each for each in site.rest.group_status(group).conditions if each.subject.startswith("leg/")]
    tagged = site.rest.take_checkpoint(group, tag=f"caught-{time.time_ns()}")
    with site.mounted(group, tagged.id) as mount:
        assert contents(mount.members[disk]) == contents(site.uri(f"{group}/{disk}"))


def away(folder: Path) -> Callable[[], object]:
    """Rename it; returns how to undo that."""
    folder.rename(folder.with_name("elsewhere"))
    return lambda: folder.with_name("elsewhere").rename(folder)


def empty(folder: Path) -> Callable[[], object]:
    """As an unmounted disk leaves it: the folder of the mount point, with nothing in it."""
    undo = away(folder)
    folder.mkdir()

    def back() -> None:
        assert list(folder.iterdir()) == [], "something was written beneath the mount point"
        folder.rmdir()
        undo()

    return back


def denied(folder: Path) -> Callable[[], object]:
    """Nothing may be made there, not even by root."""
    folders = [folder / ".tmp"]
    done = subprocess.run(["chattr", "+i", *map(str, folders)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no immutable folders here: {done.stderr.strip()}")
    return lambda: subprocess.run(["chattr", "-i", *map(str, folders)], check=True)


@pytest.mark.parametrize(
    ("fault", "kind", "cause"),
    [
        (away, "TargetMissing", "is missing"),
        (empty, "TargetMissing", "not the one that was opened"),
        (denied, "TargetDenied", "Operation not permitted"),
    ],
)
def test_a_target_out_of_reach_under_load(
    site: LiveSite, seed: int, fault: Callable[[Path], Callable[[], object]], kind: str, cause: str
) -> None:
    """The condition names leg and cause, the RPO is shown as missed in time, the backlog grows; then all is there."""
    with ExitStack() as stack, Ledger(site.uri("shop/disk"), BLOCKS, seed) as ledger:
        ledger.wait_for(20)
        undo = fault(site.folder / "copies")
        stack.callback(lambda: undo())
        said = wait_for_condition(site, "shop", kind)
        assert said.subject == "leg/copies"
        assert cause in said.message
        until(
            lambda: site.rest.group_status("shop").sla_state == SlaState.RPO_NOT_MET, "the RPO is shown as missed", 10
        )
        before = site.rest.group_status("shop").legs["copies"]
        assert before.data_state == DataState.DISCONNECTED
        ledger.wait_for(200)
        assert site.rest.group_status("shop").legs["copies"].lag_bytes > before.lag_bytes
        assert not site.rest.group_status("shop").protected
        stack.close()
        assert ledger.refusals == []
    assert_caught_up(site, "shop")


def test_an_idle_leg_notices_a_target_that_went_away(site: LiveSite) -> None:
    """Nothing is due, and yet it is said within half a minute; and that it is back within seconds."""
    undo = away(site.folder / "copies")
    began = time.monotonic()
    try:
        wait_for_condition(site, "shop", "TargetMissing")
        print(f"noticed after {time.monotonic() - began:.1f} s")
    finally:
        undo()
    until(lambda: condition(site, "shop", "TargetMissing") is None, "it is seen again", 90)


def test_an_unmounted_target_is_never_written_beneath_by_a_restarted_worker(site: LiveSite) -> None:
    """A worker that finds an empty folder where its copies lay makes no new repository there."""
    undo = empty(site.folder / "copies")
    try:
        site.kill("worker-0")
        said = wait_for_condition(site, "shop", "TargetMissing")
        assert "empty" in said.message
    finally:
        undo()
    assert_caught_up(site, "shop")


def test_a_full_target_is_caught_up_with_once_there_is_room(site: LiveSite, seed: int) -> None:
    """A file system of 24 MiB takes no more: said with what to do; the writer goes on; a larger one takes all."""
    disk = site.folder / "small"
    mount_tmpfs(disk, "24m")
    try:
        site.dpac("target", "add", "small", "--path", str(disk / "copies"))
        spec = site.rest.group("shop").spec.model_dump(mode="json")
        raw = site.folder / "big.raw"
        spec["members"] = {"disk": {"kind": "volume", "path": str(raw), "size": "32MiB"}}
        spec["replication"] = {"small": {"target": "small", "rpo": "1s"}}
        site.protect_to("big", spec)
        chance = random.Random(seed)
        with connected(site.uri("big/disk")) as client:
            for at in range(28):
                write(client, at * MIB, chance.randbytes(MIB))
            flush(client)
            said = wait_for_condition(site, "big", "TargetUnavailable")
            assert "No space left on device" in said.message
            assert "Free space" in said.message
            write(client, 0, b"on" * 2048)
            flush(client)
            until(lambda: site.rest.group_status("big").sla_state == SlaState.RPO_NOT_MET, "the RPO is missed", 90)
            subprocess.run(["mount", "-o", "remount,size=128m", str(disk)], check=True)
        assert_caught_up(site, "big")
        site.dpac("group", "delete", "big", "--on-destroy", "purge", "--yes")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    assert not os.path.ismount(disk)
