"""Checkpoints opened for use: volumes as writable NBD exports, directories as folders. They survive the worker."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dpac_api.errors import DpacError, NotFound
from dpac_api.models import Model, Mount, TargetSpec
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.moments import moment
from dpac_engine.control.worker_api import WorkerMount
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image
from dpac_engine.core.manifest import MemberState
from dpac_engine.io.files import make_folder, replace_file
from dpac_engine.io.mounted_volume import MountedVolume
from dpac_engine.io.nbd.export import Export
from dpac_engine.io.repository import RepositoryReader

log = logging.getLogger(__name__)

OpenReader = Callable[[str, TargetSpec], RepositoryReader]
RestoreTree = Callable[[Iterable[tuple[bytes, bytes]], Callable[[bytes], bytes], Path, Callable[[int], None]], int]


class _MountFile(Model):
    """`mounts/<id>/mount.json`."""

    request: WorkerMount
    group: str
    target: TargetSpec
    mount: Mount
    lsn: int = 0
    """Where the checkpoint lies. The end of a tail bears the number of the next mark, which lies further on."""


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
    ) -> None:
        self._worker = worker
        self._groups = groups
        self._folder = folder
        self._open_reader = open_reader
        self._restore_tree = restore_tree
        self._nbd_uri = nbd_uri
        self._executor = executor
        self._open: dict[str, tuple[Mount, dict[str, MountedVolume]]] = {}

    def exports(self) -> Mapping[str, Export]:
        """Export name (`mount-ID/MEMBER`) -> device."""
        return {
            f"mount-{mount_id}/{name}": volume
            for mount_id, (_, volumes) in self._open.items()
            for name, volume in volumes.items()
        }

    async def open(self, request: WorkerMount) -> Mount:
        """Open a checkpoint's members. Unrecoverable if the target does not hold it; nothing is left behind then."""
        if request.mount_id in self._open:
            return self._open[request.mount_id][0]
        text = (self._groups / request.group_uid / "assignment.json").read_text()
        assignment = WorkerAssignment.model_validate_json(text)
        if request.target not in assignment.targets:
            raise NotFound(
                f"Group {assignment.name} has no target {request.target!r} (`dpac status {assignment.name}`)."
            )
        target = assignment.targets[request.target]
        folder = self._folder / request.mount_id
        try:
            image, mark, members = await asyncio.to_thread(self._look_up, request, target)
            paths = await self._open_members(folder, image, members, fill=True)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        mount = Mount(
            id=request.mount_id,
            group=assignment.name,
            checkpoint=mark.id,
            checkpoint_time=moment(mark.stamp_ns),
            members=self._addresses(request.mount_id, paths),
            created=datetime.now(UTC),
        )
        record = _MountFile(request=request, group=assignment.name, target=target, mount=mount, lsn=mark.lsn)
        await asyncio.to_thread(self._record, folder, record)
        self._open[request.mount_id] = (
            mount,
            {name: path for name, path in paths.items() if not isinstance(path, Path)},
        )
        return mount

    def _record(self, folder: Path, record: _MountFile) -> None:
        replace_file(folder / "mount.json", f"{self._worker}\n{record.model_dump_json()}".encode())

    def _look_up(
        self, request: WorkerMount, target: TargetSpec, lsn: int = 0
    ) -> tuple[Image, Mark, dict[int, MemberState]]:
        reader = self._open_reader(request.group_uid, target)
        reader.refresh()
        mark = reader.resolve(request.checkpoint)
        mark = msgspec.structs.replace(mark, lsn=lsn or mark.lsn)
        held = reader.members_at(mark)
        members = {ordinal: member for ordinal, member in held.items() if member.name in request.members}
        missing = set(request.members) - {member.name for member in members.values()}
        if missing:
            raise NotFound(
                f"Checkpoint {mark.id} at {request.target} does not hold {', '.join(sorted(missing))}: "
                "it was not protected yet then. Choose a later checkpoint or other members."
            )
        return reader.image(mark), mark, members

    async def _open_members(
        self, folder: Path, image: Image, members: Mapping[int, MemberState], *, fill: bool
    ) -> dict[str, MountedVolume | Path]:
        opened: dict[str, MountedVolume | Path] = {}
        for ordinal, member in members.items():
            place = folder / member.name
            await asyncio.to_thread(make_folder, place)
            if member.kind == "volume":
                volume = await asyncio.to_thread(image.volume, ordinal)
                opened[member.name] = MountedVolume(volume, place, asyncio.get_running_loop(), self._executor)
            else:
                if fill:
                    await asyncio.to_thread(self._fill, image, ordinal, place)
                opened[member.name] = place
        return opened

    def _fill(self, image: Image, ordinal: int, place: Path) -> None:
        tree = image.tree(ordinal)
        self._restore_tree(tree.entries(), tree.read_chunk, place, lambda _: None)

    def _addresses(self, mount_id: str, opened: Mapping[str, MountedVolume | Path]) -> dict[str, str]:
        return {
            name: str(what) if isinstance(what, Path) else self._nbd_uri(f"mount-{mount_id}/{name}")
            for name, what in opened.items()
        }

    async def close(self, mount_id: str) -> None:
        """See `WorkerApi.unmount`."""
        if mount_id not in self._open:
            raise NotFound(f"There is no mount {mount_id}. `dpac mounts` lists those that are open.")
        _, volumes = self._open.pop(mount_id)
        for volume in volumes.values():
            volume.close()
        await asyncio.to_thread(shutil.rmtree, self._folder / mount_id)

    async def restore_all(self) -> None:
        """Open again what was open when the worker ended; one that cannot be opened is logged and left for later."""
        for path in sorted(self._folder.glob("*/mount.json")):
            worker, _, text = path.read_text().partition("\n")
            if int(worker) != self._worker:
                continue
            record = _MountFile.model_validate_json(text)
            try:
                image, _, members = await asyncio.to_thread(self._look_up, record.request, record.target, record.lsn)
                opened = await self._open_members(path.parent, image, members, fill=False)
            except DpacError as error:
                log.error("mount %s stays closed: %s", record.request.mount_id, error.message)
                continue
            volumes = {name: what for name, what in opened.items() if not isinstance(what, Path)}
            self._open[record.request.mount_id] = (record.mount, volumes)
