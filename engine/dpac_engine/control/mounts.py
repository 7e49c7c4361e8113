"""Checkpoints opened for use: volumes as writable NBD exports, directories as mounted folders. They survive the worker."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from dpac_api.errors import Conflict, DpacError, NotFound, Temporary
from dpac_api.models import Model, Mount, TargetSpec
from dpac_engine.control.assignment import WorkerAssignment, shard_key
from dpac_engine.control.moments import moment
from dpac_engine.control.mount_holds import Hold, hold, let_go, read_hold
from dpac_engine.control.tree_mounts import FuseUnavailable, TreeMounts
from dpac_engine.control.tree_orders import TreeOrder, tree_folder
from dpac_engine.control.worker_api import MountState, MountStates, WorkerMount
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image
from dpac_engine.core.manifest import MemberState
from dpac_engine.core.sharded_image import ShardedImage
from dpac_engine.io.files import make_folder, replace_file
from dpac_engine.io.hydration import Hydration
from dpac_engine.io.mounted_tree.local_copy import is_whole
from dpac_engine.io.mounted_tree.mountpoint import detach
from dpac_engine.io.mounted_volume import DeviceImage, MountedVolume, Zeroes, hydrated_size
from dpac_engine.io.nbd.export import Export
from dpac_engine.io.repository import RepositoryReader

log = logging.getLogger(__name__)

MOUNTS_MAX = 100
"""Of one worker: each volume of a mount takes three file descriptors."""
OPEN_AGAIN_SECONDS = 2.0

OpenReader = Callable[[str, TargetSpec], RepositoryReader]
RestoreTree = Callable[..., object]


class _MountFile(Model):
    """`mounts/<id>/mount.json`."""

    request: WorkerMount
    group: str
    target: TargetSpec
    mount: Mount
    lsn: int = 0
    """Where the checkpoint lies. The end of a tail bears the number of the next mark, which lies further on."""


@dataclass
class _Open:
    """A mount that is served."""

    mount: Mount
    volumes: dict[str, MountedVolume]
    hydrations: list[Hydration] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


@dataclass
class _Opening:
    """A mount that is being opened: for the first time, or after a restart."""

    folder: Path
    request: WorkerMount
    target: TargetSpec
    lsn: int
    image: Image | ShardedImage
    first: bool = True
    note: str = ""


class _Part(NamedTuple):
    mark: Mark
    image: Image
    members: dict[int, MemberState]
    hold: Hold
    stored: bool
    """All of it is in segments: what a tail tells is stored later, under other names."""


class Mounts:
    """The mounts of one worker. Everything belongs to its event loop."""

    def __init__(
        self,
        worker: int,
        groups: Path,
        folder: Path,
        open_reader: OpenReader,
        restore_tree: RestoreTree,
        nbd_uri: Callable[[str], str],
        executor: Executor,
        trees: TreeMounts,
    ) -> None:
        self._worker = worker
        self._groups = groups
        self._folder = folder
        self._open_reader = open_reader
        self._restore_tree = restore_tree
        self._nbd_uri = nbd_uri
        self._executor = executor
        self._trees = trees
        self._open: dict[str, _Open] = {}
        self._closed: dict[str, str] = {}
        """Mounts of an earlier run that could not be opened again yet -> why."""
        self._turns: dict[str, asyncio.Lock] = {}
        self._opening: asyncio.Task[None] | None = None

    def exports(self) -> Mapping[str, Export]:
        """Export name (`mount-ID/MEMBER`) -> device."""
        return {
            f"mount-{mount_id}/{name}": volume
            for mount_id, opened in self._open.items()
            for name, volume in opened.volumes.items()
        }

    def states(self) -> MountStates:
        """See `WorkerApi.mount_states`."""
        return MountStates(
            mounts=[
                *(self._state(mount_id, opened.hydrations) for mount_id, opened in self._open.items()),
                *(MountState(mount_id=mount_id, problem=why) for mount_id, why in self._closed.items()),
            ]
        )

    async def open(self, request: WorkerMount) -> Mount:
        """Open a checkpoint's members. Unrecoverable if the target does not hold it; nothing is left behind then."""
        if request.mount_id in self._open:
            return self._open[request.mount_id].mount
        if len(self._open) >= MOUNTS_MAX:
            raise Conflict(
                f"Worker {self._worker} has {MOUNTS_MAX} mounts open, as many as it takes. Close some first (`dpac mounts`, "
                "`dpac unmount ID`)."
            )
        text = (self._groups / request.group_uid / "assignment.json").read_text()
        assignment = WorkerAssignment.model_validate_json(text)
        if request.target not in assignment.targets:
            raise NotFound(
                f"Group {assignment.name} has no target {request.target!r} (`dpac status {assignment.name}`)."
            )
        target = assignment.targets[request.target]
        folder = self._folder / request.mount_id
        try:
            image, mark, members = await asyncio.to_thread(self._look_up, folder, request, target)
            opening = _Opening(folder, request, target, mark.lsn, image)
            paths = await self._open_members(opening, members)
        except BaseException:
            with suppress(DpacError):
                await self._trees.unmount(request.mount_id)
            with suppress(OSError):
                await asyncio.to_thread(_delete, folder)
            raise
        mount = Mount(
            id=request.mount_id,
            group=assignment.name,
            checkpoint=mark.id,
            checkpoint_time=moment(mark.stamp_ns),
            members=self._addresses(request.mount_id, paths),
            created=datetime.now(UTC),
            note=opening.note,
        )
        record = _MountFile(request=request, group=assignment.name, target=target, mount=mount, lsn=mark.lsn)
        await asyncio.to_thread(self._record, folder, record)
        self._serve(record, paths)
        return mount

    def _record(self, folder: Path, record: _MountFile) -> None:
        replace_file(folder / "mount.json", f"{self._worker}\n{record.model_dump_json()}".encode())

    def _look_up(
        self, folder: Path, request: WorkerMount, target: TargetSpec, lsn: int = 0
    ) -> tuple[Image | ShardedImage, Mark, dict[int, MemberState]]:
        """Find the checkpoint, and hold what it is made of."""
        keys = [shard_key(request.group_uid, shard) for shard in range(request.shards)]
        parts = [self._part(key, request, target, lsn if len(keys) == 1 else 0) for key in keys]
        members = {ordinal: member for part in parts for ordinal, member in part.members.items()}
        mark = parts[0].mark
        missing = set(request.members) - {member.name for member in members.values()}
        if missing:
            raise NotFound(
                f"Checkpoint {mark.id} at {request.target} does not hold {', '.join(sorted(missing))}: "
                "it was not protected yet then. Choose a later checkpoint or other members."
            )
        make_folder(folder)
        if all(part.stored for part in parts):
            first, *others = [part.hold for part in parts]
            hold(folder, msgspec.structs.replace(first, others=others))
        return _whole([(part.image, part.members) for part in parts]), mark, members

    def _part(self, key: str, request: WorkerMount, target: TargetSpec, lsn: int) -> _Part:
        """What one shard, or a group that has no other, holds of the checkpoint."""
        reader = self._open_reader(key, target)
        reader.refresh()
        mark = reader.resolve(request.checkpoint)
        mark = msgspec.structs.replace(mark, lsn=lsn or mark.lsn)
        held = reader.members_at(mark)
        members = {ordinal: member for ordinal, member in held.items() if member.name in request.members}
        refs = reader.refs_of(mark)
        stored = all(reader.is_stored(ref) for ref in refs)
        return _Part(mark, reader.image_of(refs, mark.lsn), members, Hold(key, mark.lsn, refs, members), stored)

    async def _open_members(
        self, opening: _Opening, members: Mapping[int, MemberState]
    ) -> dict[str, MountedVolume | Path]:
        opened: dict[str, MountedVolume | Path] = {}
        try:
            for ordinal, member in members.items():
                place = opening.folder / member.name
                if member.kind == "volume":
                    await asyncio.to_thread(make_folder, place)
                    under = await asyncio.to_thread(_under_overlay, opening.image, ordinal, place)
                    opened[member.name] = MountedVolume(under, place, asyncio.get_running_loop(), self._executor)
                else:
                    await self._open_tree(opening, ordinal, member.name)
                    opened[member.name] = place
        except BaseException:
            for volume in _volumes(opened).values():
                volume.close()
            raise
        return opened

    async def _open_tree(self, opening: _Opening, ordinal: int, member: str) -> None:
        """Mount a directory, or, on a host that cannot, copy it whole. One that was copied is there as it is."""
        request = opening.request
        if not opening.first and not (opening.folder / tree_folder(member)).exists():
            return
        order = TreeOrder(
            mount_id=request.mount_id,
            member=member,
            group_uid=request.group_uid,
            target=opening.target,
            checkpoint=request.checkpoint,
            lsn=opening.lsn,
            shards=request.shards,
            hydrate=request.hydrate,
        )
        try:
            await self._trees.mount(order)
        except FuseUnavailable as why:
            if not opening.first:
                raise Temporary(f"The mounted directory {member} cannot be mounted again: {why}.") from why
            log.warning("%s/%s is copied whole: %s", request.mount_id, member, why)
            opening.note = f"Directories were copied whole before they were there, because {why}."
            await asyncio.to_thread(self._fill, opening, ordinal, member)

    def _fill(self, opening: _Opening, ordinal: int, member: str) -> None:
        shutil.rmtree(opening.folder / tree_folder(member), ignore_errors=True)
        tree, place = opening.image.tree(ordinal), opening.folder / member
        place.mkdir(mode=0o700)  # durable with `mount.json`
        self._restore_tree(
            tree.entries(), tree.read_chunk, place, lambda _: None, place=tree.chunk_place, runs=tree.runs
        )

    def _addresses(self, mount_id: str, opened: Mapping[str, MountedVolume | Path]) -> dict[str, str]:
        return {
            name: str(what) if isinstance(what, Path) else self._nbd_uri(f"mount-{mount_id}/{name}")
            for name, what in opened.items()
        }

    # ------------------------------------------------------------ hydration

    def _serve(self, record: _MountFile, paths: Mapping[str, MountedVolume | Path]) -> None:
        mount_id, volumes = record.request.mount_id, _volumes(paths)
        self._open[mount_id] = opened = _Open(record.mount, volumes)
        self._closed.pop(mount_id, None)
        turn = self._turns.setdefault(record.target.location, asyncio.Lock())
        if record.request.hydrate:
            opened.hydrations = [Hydration(f"{mount_id}/{name}", volume, turn) for name, volume in volumes.items()]
        if record.request.hydrate or not (volumes or self._trees.states(mount_id)):
            opened.task = asyncio.create_task(self._hydrate(mount_id, opened), name=f"hydrate {mount_id}")

    async def _hydrate(self, mount_id: str, opened: _Open) -> None:
        try:
            await asyncio.gather(*(hydration.run() for hydration in opened.hydrations), self._trees.copied(mount_id))
            await asyncio.to_thread(let_go, self._folder / mount_id)
        except Exception:  # the mount is served as it was; its log has the reason
            log.exception("mount %s is not copied on", mount_id)

    def _state(self, mount_id: str, hydrations: Sequence[Hydration]) -> MountState:
        trees = self._trees.states(mount_id)
        fractions = [
            *(one.fraction for one in hydrations),
            *(one.fraction for one in trees if one.fraction is not None),
        ]
        problems = [*(one.problem for one in hydrations), *(one.problem for one in trees)]
        return MountState(
            mount_id=mount_id,
            hydrated_fraction=sum(fractions) / len(fractions) if fractions else None,
            problem=next(filter(None, problems), ""),
        )

    # ------------------------------------------------------------ the end, and the next start

    async def close(self, mount_id: str) -> None:
        """See `WorkerApi.unmount`."""
        folder = self._folder / mount_id
        if mount_id not in self._open and mount_id not in self._closed:
            raise NotFound(f"There is no mount {mount_id}. `dpac mounts` lists those that are open.")
        self._closed.pop(mount_id, None)
        opened = self._open.pop(mount_id, None)
        if opened is not None:
            if opened.task is not None:
                opened.task.cancel()
                await asyncio.gather(opened.task, return_exceptions=True)
            await asyncio.gather(*(hydration.settled() for hydration in opened.hydrations))
            for volume in opened.volumes.values():
                volume.close()
        try:
            await self._trees.unmount(mount_id)
            await asyncio.to_thread(_delete, folder)
        except (DpacError, OSError) as error:
            self._closed[mount_id] = str(error)
            raise Temporary(f"Mount {mount_id} is not gone: {error}. Unmount it again.") from error

    async def stop(self) -> None:
        """Take mounted directories away: the next start mounts them again."""
        if self._opening is not None:
            self._opening.cancel()
        await self._trees.stop()

    async def restore_all(self) -> None:
        """Open again what was open when the worker ended; what cannot be opened yet is tried again behind."""
        records = {}
        for path in sorted(self._folder.glob("*/mount.json")):
            worker, _, text = path.read_text().partition("\n")
            if int(worker) == self._worker:
                records[path.parent] = _MountFile.model_validate_json(text)
        waiting = await self._open_again(records)
        if waiting:
            self._opening = asyncio.create_task(self._keep_opening(waiting), name="open mounts again")

    async def _keep_opening(self, waiting: dict[Path, _MountFile]) -> None:
        while waiting:
            await asyncio.sleep(OPEN_AGAIN_SECONDS)
            waiting = await self._open_again(
                {path: each for path, each in waiting.items() if path.name in self._closed}
            )

    async def _open_again(self, records: Mapping[Path, _MountFile]) -> dict[Path, _MountFile]:
        """Returns those that could not be opened."""
        waiting = {}
        for folder, record in records.items():
            mount_id = record.request.mount_id
            try:
                image, members = await asyncio.to_thread(self._find_again, folder, record)
                opening = _Opening(folder, record.request, record.target, record.lsn, image, first=False)
                paths = await self._open_members(opening, members)
            except DpacError as error:
                if self._closed.get(mount_id) != error.message:
                    log.error("mount %s stays closed for now: %s", mount_id, error.message)
                self._closed[mount_id] = error.message
                waiting[folder] = record
                continue
            self._serve(record, paths)
        return waiting

    def _find_again(self, folder: Path, record: _MountFile) -> tuple[Image | ShardedImage, Mapping[int, MemberState]]:
        held = read_hold(folder)
        request = record.request
        if held is not None:
            shards = [held, *held.others]
            readers = [self._open_reader(shard.group_uid, record.target) for shard in shards]
            images = [reader.image_of(shard.segments, shard.lsn) for reader, shard in zip(readers, shards, strict=True)]
            parts = [(image, shard.members) for image, shard in zip(images, shards, strict=True)]
            return _whole(parts), {at: member for shard in shards for at, member in shard.members.items()}
        volumes = _exported(record)
        if all(_needs_nothing(folder, name, volume=name in volumes) for name in request.members):
            kinds = {name: "volume" if name in volumes else "directory" for name in request.members}
            members = {at: MemberState("", kind, name) for at, (name, kind) in enumerate(kinds.items())}
            return Image(list, record.lsn), members
        image, _, found = self._look_up(folder, request, record.target, record.lsn)
        return image, found


def _delete(folder: Path) -> None:
    """Take away whatever is mounted in a mount's folder, and that with all it has. Raises OSError."""
    for state in folder.glob(tree_folder("*")):
        detach(folder / state.stem)
    if folder.exists():
        shutil.rmtree(folder)


def _whole(parts: Sequence[tuple[Image, Mapping[int, MemberState]]]) -> Image | ShardedImage:
    """The group out of its shards' images."""
    if len(parts) == 1:
        return parts[0][0]
    return ShardedImage({ordinal: image for image, members in parts for ordinal in members})


def _under_overlay(image: Image | ShardedImage, ordinal: int, place: Path) -> DeviceImage:
    size_bytes = hydrated_size(place)
    return image.volume(ordinal) if size_bytes is None else Zeroes(size_bytes)


def _needs_nothing(folder: Path, member: str, *, volume: bool) -> bool:
    """Whether a member needs no target any more."""
    if volume:
        return hydrated_size(folder / member) is not None
    tree = folder / tree_folder(member)
    return is_whole(tree) or not tree.exists()


def _exported(record: _MountFile) -> set[str]:
    """The volumes of a mount."""
    return {name for name, where in record.mount.members.items() if where.startswith("nbd")}


def _volumes(opened: Mapping[str, MountedVolume | Path]) -> dict[str, MountedVolume]:
    return {name: what for name, what in opened.items() if not isinstance(what, Path)}
