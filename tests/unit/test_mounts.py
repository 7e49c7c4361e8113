"""The mounts of a worker against a repository in memory: what they hold there, share, and survive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakValueDictionary

import pytest

from dpac_api.errors import Conflict, Unreachable
from dpac_api.models import AsyncLegSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control import mounts as mounts_module
from dpac_engine.control.assignment import MemberAssignment, WorkerAssignment
from dpac_engine.control.compaction import GRACE_NS, Compaction
from dpac_engine.control.mount_holds import held_segments, read_hold
from dpac_engine.control.mounts import Mounts
from dpac_engine.control.tree_mounts import FuseUnavailable, TreeMounts
from dpac_engine.control.tree_orders import TreeOrder
from dpac_engine.control.worker_api import MountState, WorkerMount
from dpac_engine.core import retention
from dpac_engine.io.mounted_volume import MountedVolume
from dpac_engine.io.repository import RepositoryReader
from dpac_engine.io.stored_segment import BlockCache
from dpac_engine.io.stores.memory import MemoryStore
from tests.unit.test_compaction import GROUP, HOUR, Copy

MERGE_ALL = (JournalSpec(history=Duration.parse("1h")), RetentionSpec())


def restored(_entries: object, _read_chunk: object, to: Path, *_: object, **_named: object) -> int:
    """Stands for a restore."""
    (to / "restored").touch()
    return 0


class Host:
    """A worker's mounts, and the target they come from; `away` takes that out of reach."""

    def __init__(self, folder: Path, kind: str = "volume") -> None:
        self.folder, self.copy, self.away = folder, Copy(), False
        self.copy.kind = kind
        (folder / "groups" / GROUP).mkdir(parents=True)
        (folder / "mounts").mkdir()
        assignment = WorkerAssignment.model_validate(
            {
                "group_uid": GROUP,
                "name": "shop",
                "site_uid": "5" * 32,
                "shard_uid": "2" * 32,
                "worker": 0,
                "generation": 1,
                "epoch": 1,
                "membership_version": 1,
                "key_id": "3" * 32,
                "spec": {
                    "members": {"disk": {"kind": "volume", "path": "/disk.raw", "size": "4KiB"}},
                    "replication": {"copies": {"target": "copies", "rpo": "1s"}},
                },
                "members": {"disk": MemberAssignment(ordinal=1, uid="aa" * 16)},
                "targets": {"copies": {"kind": "filesystem", "path": "/copies"}},
            }
        )
        (folder / "groups" / GROUP / "assignment.json").write_text(assignment.model_dump_json())
        self.cache, self.segments = BlockCache(), WeakValueDictionary()  # type: ignore[var-annotated]

    def worker(self, executor: ThreadPoolExecutor, trees: TreeMounts | None = None) -> Mounts:
        """The worker's mounts, as after a start."""

        def open_reader(uid: str, _: object) -> RepositoryReader:
            return RepositoryReader(self.store, uid, lambda _: bytes(32), self.cache, self.segments)

        return Mounts(
            0,
            self.folder / "groups",
            self.folder / "mounts",
            open_reader,  # type: ignore[arg-type]
            restored,
            lambda name: f"nbd+unix:///{name}",
            executor,
            trees or TreeMounts(["false"]),
        )

    @property
    def store(self) -> MemoryStore:
        if self.away:
            raise Unreachable("The target is away.")
        return self.copy.store

    def request(self, mount_id: str, checkpoint: str, *, hydrate: bool) -> WorkerMount:
        """Open the disk at a checkpoint."""
        return WorkerMount(
            mount_id=mount_id,
            group_uid=GROUP,
            target="copies",
            checkpoint=checkpoint,
            members=["disk"],
            hydrate=hydrate,
        )

    def collect(self, *, later: int) -> None:
        """Compaction long after, with what mounts hold left alone."""
        self.copy.clock.now += later
        compaction = Compaction(
            MERGE_ALL[0],
            AsyncLegSpec(target="t", retention=MERGE_ALL[1]),
            lambda: held_segments(self.folder / "mounts", GROUP),
        )
        while compaction.step(self.copy.writer, self.copy.commit, self.copy.clock.now):
            pass


def told(story: Callable[[ThreadPoolExecutor], Awaitable[None]]) -> None:
    """Run a story with an executor."""

    async def run() -> None:
        with ThreadPoolExecutor(2) as executor:
            async with asyncio.timeout(30):
                await story(executor)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    while not condition():  # noqa: ASYNC110 - any condition, not an event
        await asyncio.sleep(0.005)


def device(mounts: Mounts, mount_id: str) -> MountedVolume:
    """The disk of a mount."""
    volume = mounts.exports()[f"mount-{mount_id}/disk"]
    assert isinstance(volume, MountedVolume)
    return volume


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge however little there is, and try again soon."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)
    monkeypatch.setattr(mounts_module, "OPEN_AGAIN_SECONDS", 0.01)


def test_an_open_mount_keeps_what_it_reads_for_days_and_gives_it_free_at_its_end(tmp_path: Path) -> None:
    """Thinned away, past the grace, and after a restart of the worker: it is served still, until it is unmounted."""
    host = Host(tmp_path)
    for number in range(1, 21):
        host.copy.write(bytes([number]) * 20)
    oldest = min(host.copy.content, key=lambda name: int(name.rpartition("-")[2]))
    expected = host.copy.content[oldest]

    async def story(executor: ThreadPoolExecutor) -> None:
        mounts = host.worker(executor)
        await mounts.open(host.request("mnt-1", oldest, hydrate=False))
        held = read_hold(tmp_path / "mounts" / "mnt-1")
        assert held is not None
        names = {ref.name for ref in held.segments}
        for _ in range(3):
            host.collect(later=GRACE_NS + HOUR)
        assert oldest not in {mark.id for mark in host.copy.reader().marks()}, (
            "the checkpoint has not been thinned away"
        )
        assert names <= set(host.copy.store.list("s/"))
        assert device(mounts, "mnt-1").read_blocking(0, 1024) == expected
        host.cache, host.segments = BlockCache(), WeakValueDictionary()
        again = host.worker(executor)
        await again.restore_all()
        assert device(again, "mnt-1").read_blocking(0, 1024) == expected
        await again.close("mnt-1")
        device(mounts, "mnt-1").close()
        host.collect(later=HOUR)
        assert not names & set(host.copy.store.list("s/")), "what it held is still there"

    told(story)


def test_a_hold_that_cannot_be_read_deletes_nothing(tmp_path: Path) -> None:
    """Better too much at the target than a mount that ends."""
    host = Host(tmp_path)
    for number in range(1, 6):
        host.copy.write(bytes([number]) * 20)
    before = set(host.copy.store.list("s/"))
    (tmp_path / "mounts" / "mnt-1").mkdir()
    (tmp_path / "mounts" / "mnt-1" / "held.json").write_text("{")
    for _ in range(2):
        host.collect(later=GRACE_NS + HOUR)
    assert before <= set(host.copy.store.list("s/"))


def test_a_hydrated_mount_holds_nothing_and_opens_without_its_target(tmp_path: Path) -> None:
    """Once it is copied the target may go, and the worker may start anew."""
    host = Host(tmp_path)
    host.copy.write(b"x" * 20)
    (checkpoint,) = host.copy.content

    async def story(executor: ThreadPoolExecutor) -> None:
        mounts = host.worker(executor)
        await mounts.open(host.request("mnt-1", checkpoint, hydrate=True))
        await until(lambda: read_hold(tmp_path / "mounts" / "mnt-1") is None)
        assert mounts.states().mounts == [MountState(mount_id="mnt-1", hydrated_fraction=1.0)]
        device(mounts, "mnt-1").close()
        host.away = True
        again = host.worker(executor)
        await again.restore_all()
        assert device(again, "mnt-1").read_blocking(0, 1024) == host.copy.content[checkpoint]
        await again.close("mnt-1")
        assert list((tmp_path / "mounts").iterdir()) == []

    told(story)


def test_a_mount_whose_target_is_away_at_the_start_is_listed_and_opened_when_it_returns(tmp_path: Path) -> None:
    """It says why it is not served; it can be unmounted meanwhile, too."""
    host = Host(tmp_path)
    host.copy.write(b"x" * 20)
    (checkpoint,) = host.copy.content

    async def story(executor: ThreadPoolExecutor) -> None:
        mounts = host.worker(executor)
        for mount_id in ("mnt-1", "mnt-2"):
            await mounts.open(host.request(mount_id, checkpoint, hydrate=False))
            device(mounts, mount_id).close()
        host.away = True
        host.cache, host.segments = BlockCache(), WeakValueDictionary()
        again = host.worker(executor)
        await again.restore_all()
        problems = {state.mount_id: state.problem for state in again.states().mounts}
        assert problems == {"mnt-1": "The target is away.", "mnt-2": "The target is away."}
        await again.close("mnt-2")
        assert [path.name for path in (tmp_path / "mounts").iterdir()] == ["mnt-1"]
        host.away = False
        await until(again.exports)
        assert device(again, "mnt-1").read_blocking(0, 1024) == host.copy.content[checkpoint]
        assert again.states().mounts == [MountState(mount_id="mnt-1")]
        await again.close("mnt-1")

    told(story)


def test_mounts_at_once_share_indexes_and_blocks_and_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of them read each segment once; one more than the limit is refused with what to do."""
    host = Host(tmp_path)
    for number in range(1, 21):
        host.copy.write(bytes([number]) * 20)
    monkeypatch.setattr(mounts_module, "MOUNTS_MAX", 20)

    async def story(executor: ThreadPoolExecutor) -> None:
        mounts = host.worker(executor)
        for number, checkpoint in enumerate(sorted(host.copy.content)):
            await mounts.open(host.request(f"mnt-{number}", checkpoint, hydrate=False))
        for number, checkpoint in enumerate(sorted(host.copy.content)):
            assert device(mounts, f"mnt-{number}").read_blocking(0, 1024) == host.copy.content[checkpoint]
        assert len(host.segments) == 20, "an index for each mount and segment"
        with pytest.raises(Conflict, match="dpac unmount"):
            await mounts.open(host.request("mnt-more", checkpoint, hydrate=False))
        assert not (tmp_path / "mounts" / "mnt-more").exists()
        for number in range(20):
            await mounts.close(f"mnt-{number}")
        assert not mounts.exports()
        assert not list((tmp_path / "mounts").iterdir())

    told(story)


def test_a_mount_file_names_what_was_asked_for(tmp_path: Path) -> None:
    """Whether it is copied is asked again of the file after a restart."""
    host = Host(tmp_path)
    host.copy.write(b"x" * 20)
    (checkpoint,) = host.copy.content

    async def story(executor: ThreadPoolExecutor) -> None:
        mounts = host.worker(executor)
        await mounts.open(host.request("mnt-1", checkpoint, hydrate=False))
        text = (tmp_path / "mounts" / "mnt-1" / "mount.json").read_text().partition("\n")[2]
        assert json.loads(text)["request"]["hydrate"] is False
        await mounts.close("mnt-1")

    told(story)


class NoFuse(TreeMounts):
    """A host on which no directory can be mounted."""

    async def mount(self, order: TreeOrder) -> None:
        raise FuseUnavailable("/dev/fuse is missing")


def test_without_fuse_a_directory_is_copied_whole_and_the_mount_says_so(tmp_path: Path) -> None:
    """It is a plain folder with what the checkpoint holds, before and after a restart, and nothing is held for it."""
    host = Host(tmp_path, kind="directory")
    host.copy.write(b"x")
    newest = max(host.copy.content, key=lambda name: int(name.rpartition("-")[2]))

    async def story(executor: ThreadPoolExecutor) -> None:
        for first in (True, False):
            mounts = host.worker(executor, NoFuse(["false"]))
            if first:
                mount = await mounts.open(host.request("mnt-1", newest, hydrate=True))
                assert mount.note == (
                    "Directories were copied whole before they were there, because /dev/fuse is missing."
                )
                (Path(mount.members["disk"]) / "changed").write_text("by a client")
            else:
                await mounts.restore_all()
            assert (tmp_path / "mounts" / "mnt-1" / "disk" / "restored").exists()
            await until(lambda: read_hold(tmp_path / "mounts" / "mnt-1") is None)
            assert mounts.states().mounts == [MountState(mount_id="mnt-1")]
        assert (tmp_path / "mounts" / "mnt-1" / "disk" / "changed").read_text() == "by a client"
        await mounts.close("mnt-1")
        assert list((tmp_path / "mounts").iterdir()) == []

    told(story)
