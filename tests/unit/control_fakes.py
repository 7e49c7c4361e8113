"""Fakes of what the control plane is given: a worker, repositories in memory, keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dpac_api.errors import Conflict, Corruption, DpacError, NotFound, Unreachable, Unrecoverable
from dpac_api.models import (
    Checkpoint,
    CheckpointRequest,
    DataState,
    GroupStatus,
    KeptSpace,
    LegStatus,
    MemberStatus,
    Mount,
    SiteInfo,
    SlaState,
    TargetSpace,
    TargetSpec,
)
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.catalogue import Catalogue
from dpac_engine.control.catalogue_groups import Host
from dpac_engine.control.known_damage import is_hurt
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.plane import Deps
from dpac_engine.control.recovery import MarkFilter, RangeView, TreeOutcome
from dpac_engine.control.worker_api import (
    HoldChange,
    HoldOutcome,
    MountState,
    MountStates,
    RewindProgress,
    WorkerMount,
    WorkerRewind,
)
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody, select
from dpac_engine.core.damage import Finding, Verification
from dpac_engine.core.difference import FileChange, RangeChange
from dpac_engine.core.extents import Piece
from dpac_engine.core.image import StoredRun
from dpac_engine.core.manifest import Hold
from dpac_engine.core.stream_hashes import StreamHashes

SITE = SiteInfo(site_uid="5" * 32, name="fra", version="0.1.0")
ADMIN = "the-admin-token"
NOW_NS = 1_800_000_000 * 10**9
WAIT_SECONDS = 10.0


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.ns = NOW_NS

    def now_ns(self) -> int:
        return self.ns

    def monotonic_ns(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


class FakeWorker:
    """Does what it is told at once, and remembers it. `down` makes it unreachable."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.down = False
        self.calls: list[str] = []
        self.serving: dict[str, WorkerAssignment] = {}
        self.mounts: dict[str, WorkerMount] = {}
        self.sequence = 0
        self.escrow: list[str] = []
        """Fingerprints of the escrow keys that open what lies at every leg's target."""
        self.leg_message = ""
        self.hold_calls: asyncio.Event | None = None
        self.repository: FakeRepository | None = None
        """What its checkpoints are shipped to."""
        self.held: dict[str, WorkerRewind] = {}
        self.clients = 0
        self.members: dict[str, MemberStatus] = {}
        """What `status` says of them."""
        self.rewinds: list[WorkerRewind] = []
        self.rewound = RewindProgress(state="done", done_bytes=512, total_bytes=512, bytes_written=512)
        self.repositories: dict[str, FakeRepository] = {}
        """Target -> what holds change."""
        self.hold_failures: dict[str, str] = {}
        self.orders: list[LegOrder] = []

    async def _reach(self, call: str) -> None:
        self.calls.append(call)
        if self.hold_calls is not None:
            await self.hold_calls.wait()
        if self.down:
            raise Unreachable("Worker 0 does not answer.")

    async def apply(self, group_uid: str) -> None:
        await self._reach(f"apply {group_uid}")
        text = (self.data / "groups" / group_uid / "assignment.json").read_text()
        wanted = WorkerAssignment.model_validate_json(text)
        if wanted.state == "active":
            self.serving[group_uid] = wanted
        else:
            self.serving.pop(group_uid, None)

    async def drop(self, group_uid: str) -> None:
        await self._reach(f"drop {group_uid}")
        self.serving.pop(group_uid, None)

    async def status(self, group_uid: str) -> GroupStatus:
        await self._reach(f"status {group_uid}")
        assignment = self.serving.get(group_uid)
        if assignment is None:
            raise NotFound("Not served here.")
        return GroupStatus(
            data_state=DataState.CONTINUOUS,
            sla_state=SlaState.MEETING,
            protected=True,
            seeded=True,
            checkpoint_sequence=self.sequence,
            head_lsn=640,
            durable_lsn=640,
            spool_bytes=4096,
            members=self.members,
            legs={
                name: LegStatus(
                    target=leg.target,
                    data_state=DataState.CONTINUOUS,
                    rpo_seconds=leg.rpo.seconds,
                    lag_seconds=0.5,
                    lag_bytes=100,
                    seeded_fraction=1,
                    shipped_lsn=640,
                    escrow=self.escrow,
                    message=self.leg_message,
                )
                for name, leg in assignment.spec.replication.items()
            },
            observed_generation=assignment.generation,
        )

    async def checkpoint(self, group_uid: str, request: CheckpointRequest) -> Checkpoint:
        await self._reach(f"checkpoint {group_uid}")
        self.sequence += 1
        if self.repository is not None:  # it is shipped at once
            self.repository.held.append(mark(self.sequence, tags=[request.tag] if request.tag else []))
        return Checkpoint(
            id=f"ck-1-{self.sequence}",
            time=datetime.fromtimestamp(NOW_NS / 1e9, UTC),
            lsn={self.serving[group_uid].shard_uid: 64 * self.sequence},
            membership_version=1,
            consistency="app" if request.app else "crash",
            tags=[request.tag] if request.tag else [],
        )

    async def ship(self, group_uid: str) -> None:
        await self._reach(f"ship {group_uid}")

    async def reserve(self, request: WorkerRewind) -> None:
        await self._reach(f"reserve {request.member}")
        if self.clients and not request.force_disconnect:
            raise Conflict("1 client is connected. Nothing was changed.")
        self.held[request.operation_id] = request

    async def rewind(self, request: WorkerRewind) -> None:
        await self._reach(f"rewind {request.member}")
        self.rewinds.append(request)

    async def rewind_progress(self, group_uid: str, operation_id: str) -> RewindProgress:
        await self._reach(f"rewind_progress {operation_id}")
        if operation_id not in self.held:
            raise NotFound("The worker was restarted.")
        begun = any(request.operation_id == operation_id for request in self.rewinds)
        return self.rewound if begun else RewindProgress()

    async def release(self, group_uid: str, operation_id: str) -> None:
        await self._reach(f"release {operation_id}")
        self.held.pop(operation_id, None)

    async def change_hold(self, group_uid: str, change: HoldChange) -> HoldOutcome:
        await self._reach(f"reserve {change.checkpoint}" if change.held else f"release {change.checkpoint}")
        done, lacking = [], []
        for leg in self.serving[group_uid].spec.replication.values():
            repository = self.repositories.get(leg.target)
            if repository is None or not repository.change_hold(change):
                lacking.append(leg.target)
            else:
                done.append(leg.target)
        return HoldOutcome(done=done, lacking=lacking, failed=self.hold_failures)

    async def order(self, group_uid: str, order: LegOrder) -> None:
        await self._reach(f"order {group_uid}")
        self.orders.append(order)

    async def mount(self, request: WorkerMount) -> Mount:
        await self._reach(f"mount {request.mount_id}")
        self.mounts[request.mount_id] = request
        return Mount(
            id=request.mount_id,
            group=self.serving[request.group_uid].name if request.group_uid in self.serving else "gone",
            checkpoint=request.checkpoint,
            checkpoint_time=datetime.fromtimestamp(NOW_NS / 1e9, UTC),
            members={name: f"nbd+unix:///{request.mount_id}/{name}?socket=/run/x" for name in request.members},
            created=datetime.fromtimestamp(NOW_NS / 1e9, UTC),
        )

    async def unmount(self, mount_id: str) -> None:
        await self._reach(f"unmount {mount_id}")
        if self.mounts.pop(mount_id, None) is None:
            raise NotFound("No such mount.")

    async def mount_states(self) -> MountStates:
        await self._reach("mount_states")
        return MountStates(mounts=[MountState(mount_id=mount_id, hydrated_fraction=0.5) for mount_id in self.mounts])


@dataclass
class FakeVolume:
    """A volume of a few extents; `damaged` offsets cannot be read."""

    size_bytes: int
    content: dict[int, bytes]
    damaged: set[int] = field(default_factory=set)
    before_read: Callable[[], None] = lambda: None

    def extents(self) -> Iterator[tuple[int, int]]:
        yield from ((offset, len(data)) for offset, data in sorted(self.content.items()))

    def runs(self) -> Iterator[StoredRun]:
        """Each extent lies in a segment of its own."""
        for at, length in self.extents():
            yield StoredRun(f"s/{at}", [Piece(at, length, 0, at)], self.read, lambda: StreamHashes(b"", 0))

    def read(self, offset: int, length: int) -> bytes:
        self.before_read()
        whole = bytearray(self.size_bytes)
        for at, data in self.content.items():
            if at in self.damaged and at < offset + length and offset < at + len(data):
                raise Corruption(f"block {at} does not match its checksum")
            whole[at : at + len(data)] = data
        return bytes(whole[offset : offset + length])


@dataclass
class FakeTree:
    """A directory of files by path."""

    files: dict[bytes, bytes]

    def paths(self) -> list[bytes]:
        return sorted(self.files)

    def read_entry(self, path: bytes) -> bytes:
        return self.files[path]

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted(self.files.items())

    def chunk_place(self, digest: bytes) -> tuple[int, int]:
        return (0, 0)

    def read_chunk(self, digest: bytes) -> bytes:
        raise NotFound("the fake keeps content in entries")

    def runs(self, digests: Sequence[bytes]) -> Iterator[StoredRun]:
        return iter(())


@dataclass(frozen=True)
class FakeMember:
    name: str
    kind: str


def mark(sequence: int, *, age_seconds: float = 0.0, tags: Sequence[str] = (), app: bool = False) -> Mark:
    """Checkpoint `ck-1-SEQUENCE`, that old, holding members 1 and 2."""
    cuts = {"1": CutBody("exact"), "2": CutBody("observed", NOW_NS, 10**9)}
    body = MarkBody(sequence=sequence, membership_version=1, cuts=cuts, app=app, tags=list(tags))
    return Mark(1, 64 * sequence, NOW_NS - int(age_seconds * 1e9), body)


@dataclass
class FakeRepository:
    """A repository in memory."""

    held: list[Mark] = field(default_factory=list)
    members: dict[int, FakeMember] = field(default_factory=dict)
    volumes: dict[int, FakeVolume] = field(default_factory=dict)
    trees: dict[int, FakeTree] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    error: DpacError | None = None
    holding: list[Hold] = field(default_factory=list)

    def space(self, target: str) -> TargetSpace:
        if not self.held:
            raise Unrecoverable("The target holds nothing of this group yet.")
        when = datetime.fromtimestamp(NOW_NS / 1e9, UTC)
        return TargetSpace(
            target=target, stored_bytes=7 * 2**20, seed_bytes=2**20, log_bytes={"0": 2**20, "2": 2**20}, merged_bytes=2**20,
            dropped_bytes=2**20, dropped_until=when, orphan_bytes=2**20, overhead_bytes=2**20, unique_bytes=2**19, shared_bytes=7 * 2**19, reclaimable_bytes=2 * 2**20,
            estimated=True, content_bytes=3 * 2**20, content_stored_bytes=2 * 2**20,
            kept=[KeptSpace(checkpoint="ck-1-1", time=when, stored_bytes=2**20, unique_bytes=2**19)],
        )  # fmt: skip

    def holds(self) -> Sequence[Hold]:
        return self.holding

    def change_hold(self, change: HoldChange) -> bool:
        """Whether it is here."""
        self.holding = [hold for hold in self.holding if hold.checkpoint != change.checkpoint]
        if change.held and change.lsn not in {m.lsn for m in self.held}:
            return False
        if change.held:
            self.holding.append(Hold(change.checkpoint, change.lsn, change.since_ns, change.until_ns, change.reason))
        return True

    def refresh(self) -> None:
        if self.error is not None:
            raise self.error

    def marks(self, wanted: MarkFilter) -> Iterator[Mark]:
        yield from (m for m in sorted(self.held, key=lambda m: -m.sequence) if wanted.admits(m))

    def ranges(self) -> Sequence[RangeView]:
        if not self.held:
            return []
        first, last = self.held[0], self.held[-1]
        tags = [tag for m in self.held for tag in m.body.tags]
        app_count = sum(m.body.app for m in self.held)
        return [RangeView(first.id, last.id, first.stamp_ns, last.stamp_ns, len(self.held), app_count, tags)]

    def resolve(self, selector: str, damages: Sequence[Finding]) -> tuple[Mark, Mark | None]:
        if not self.held:
            raise Unrecoverable("The target holds nothing of this group yet.")
        newest_first = sorted(self.held, key=lambda m: -m.sequence)
        if selector.startswith("ck-"):
            return select(newest_first, selector), None
        sound = [m for m in newest_first if not is_hurt(damages, m.sequence)]
        found, first = select(sound, selector), select(newest_first, selector)
        return found, first if first != found else None

    def changed_ranges(self, before: Mark, after: Mark, ordinal: int) -> list[RangeChange]:
        return [RangeChange(8192, 512)] if before != after else []

    def changed_files(self, before: Mark, after: Mark, ordinal: int) -> list[FileChange]:
        return [FileChange(b"new.txt", None, 5), FileChange(b"note.txt", 3, 5), FileChange(b"old.txt", 7, None)]

    def needs(self, name: str) -> bool:
        return name not in self.dropped

    def members_at(self, at: Mark) -> Mapping[int, FakeMember]:
        return self.members

    def image(self, at: Mark) -> FakeRepository:
        return self

    def volume(self, ordinal: int) -> FakeVolume:
        return self.volumes[ordinal]

    def tree(self, ordinal: int) -> FakeTree:
        return self.trees[ordinal]

    def verify(self, progress: object, manifest_before: int = 0) -> Verification:
        self.refresh()
        hurt = [m for m in self.held if any(m.sequence in run for found in self.findings for run in found.runs)]
        sound = [m for m in self.held if m not in hurt]
        newest = sound[-1] if sound else None
        return Verification(3, 300, len(sound), self.findings, [], newest, manifest=1)


class FakeRecovery:
    """Repositories by target path; every group shares one."""

    def __init__(self) -> None:
        self.at: dict[str, FakeRepository] = {}
        self.probes: dict[str, str] = {}
        self.locked: dict[str, datetime] = {}
        self.purged: list[tuple[str, str]] = []
        self.checks: dict[str, str] = {"orders.db": "ok"}

    def open(self, target: TargetSpec, group_uid: str, shards: int = 1) -> FakeRepository:
        return self.at.setdefault(target.path, FakeRepository())

    def change_hold(self, target: TargetSpec, key: str, key_id: str, change: HoldChange) -> None:
        if not self.open(target, key).change_hold(change):
            raise Unrecoverable("not here")

    def purge(self, target: TargetSpec, group_uid: str) -> None:
        self.purged.append((target.path, group_uid))

    def locked_until(self, target: TargetSpec, group_uid: str) -> datetime | None:
        return self.locked.get(target.path)

    def probe(self, target: TargetSpec) -> dict[str, str]:
        return {"write": self.probes.get(target.path, "ok")}

    def restore_tree(self, tree: FakeTree, to: Path, progress: object, partial: Path | None = None) -> TreeOutcome:
        to.mkdir(parents=True, exist_ok=True)
        for path, content in tree.entries():
            (to / path.decode()).write_bytes(content)
        return TreeOutcome(sum(len(content) for _, content in tree.entries()), 0)

    def read_tree(self, tree: FakeTree, progress: object) -> int:
        return sum(len(content) for _, content in tree.entries())

    def check(self, blueprint: str, root: Path) -> dict[str, str]:
        return self.checks


class FakeKeyring:
    """Numbers its keys; none is escrowed until it is said so."""

    def __init__(self) -> None:
        self.made = 0
        self.confirmed = False

    def create(self) -> str:
        self.made += 1
        return f"{self.made:032x}"

    def escrowed(self, key_id: str) -> bool:
        return self.confirmed


class FakeSigner:
    """A key of its own."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class World:
    """A site below a temporary folder."""

    def __init__(self, root: Path, workers: int = 1) -> None:
        self.root = root.resolve()
        self.data = self.root / "site"
        (self.data / "tokens").mkdir(parents=True)
        (self.data / "tokens" / "admin").write_text(ADMIN + "\n")
        (self.root / "copies").mkdir()
        (self.root / "orders").mkdir()
        self.clock = FakeClock()
        self.keyring = FakeKeyring()
        self.recovery = FakeRecovery()
        self.workers = [FakeWorker(self.data) for _ in range(workers)]
        self.crashing: dict[int, str] = {}
        self.greeted: list[str] = []

    @property
    def worker(self) -> FakeWorker:
        return self.workers[0]

    @property
    def repository(self) -> FakeRepository:
        """What lies at the target `copies`."""
        return self.recovery.at.setdefault(str(self.root / "copies"), FakeRepository())

    def host(self) -> Host:
        return Host(
            SITE, self.data, len(self.workers), self.keyring.create, lambda n: self.data / "run" / f"nbd-{n}.sock"
        )

    def deps(self) -> Deps:
        return Deps(
            host=self.host(),
            catalogue=Catalogue.open(self.data / "catalogue.sqlite"),
            workers=self.workers,
            recovery=self.recovery,
            keyring=self.keyring,
            signer=FakeSigner(),
            clock=self.clock,
            admin_token=self.data / "tokens" / "admin",
            greet=self.greeted.append,
            crashing=lambda: self.crashing,
            apply_seconds=WAIT_SECONDS,
            retry_seconds=(0.01,),
        )

    def target_spec(self, name: str = "copies") -> dict[str, object]:
        return {"kind": "filesystem", "path": str(self.root / name)}

    def group_spec(self, **changes: object) -> dict[str, object]:
        spec: dict[str, object] = {
            "members": {
                "disk": {"kind": "volume", "path": str(self.root / "disk.raw"), "size": "1MiB"},
                "orders": {"kind": "directory", "path": str(self.root / "orders"), "blueprint": "sqlite"},
            },
            "replication": {"copies": {"target": "copies"}},
        }
        return json.loads(json.dumps({**spec, **changes}))

    def fill_repository(self, count: int = 5) -> FakeRepository:
        """Give the target `count` checkpoints a second apart, of the members of `group_spec`."""
        found = self.repository
        found.held = [mark(n, age_seconds=count - n) for n in range(1, count + 1)]
        found.held[-1] = replace_tags(found.held[-1], ["nightly"])
        found.members = {1: FakeMember("disk", "volume"), 2: FakeMember("orders", "directory")}
        found.volumes = {1: FakeVolume(2**20, {0: b"boot" * 128, 8192: b"data" * 128})}
        self.worker.repository, self.worker.sequence = found, count
        found.trees = {2: FakeTree({b"orders.db": b"rows", b"note.txt": b"hello"})}
        return found


def replace_tags(old: Mark, tags: list[str]) -> Mark:
    """The same checkpoint, tagged."""
    body = MarkBody(old.body.sequence, old.body.membership_version, old.body.cuts, old.body.app, tags)
    return Mark(old.epoch, old.lsn, old.stamp_ns, body)
