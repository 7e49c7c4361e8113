"""Bringing members back to a checkpoint where they lie: the worker's side of a restore in place.

What is reserved and under way is known to this process only. A worker that dies leaves the member as far as it came; the journal has
every change, and whoever asks the next worker learns that it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

from dpac_api.errors import Conflict, DpacError, NotFound
from dpac_api.models import TargetSpec
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.member import Member
from dpac_engine.control.worker_api import RewindProgress, WorkerRewind
from dpac_engine.core.difference import changed_files, changed_ranges
from dpac_engine.core.image import Image
from dpac_engine.io.members.tally import Tally
from dpac_engine.io.members.volume_rewind import rewind_volume
from dpac_engine.io.repository import RepositoryReader

log = logging.getLogger(__name__)


class GroupView(Protocol):
    """What a rewind needs of its group."""

    assignment: WorkerAssignment

    @property
    def members(self) -> Mapping[int, Member]:
        """By ordinal."""


@dataclass
class _Rewind:
    """One member that is reserved."""

    member: Member
    tally: Tally = field(default_factory=Tally)
    task: asyncio.Task[None] | None = None
    error: str = ""


class Rewinds:
    """The rewinds of one group. Belongs to its event loop."""

    def __init__(self, group: GroupView, open_reader: Callable[[str, TargetSpec], RepositoryReader]) -> None:
        self._group = group
        self._open_reader = open_reader
        self._reserved: dict[str, _Rewind] = {}

    async def reserve(self, request: WorkerRewind) -> None:
        """See `WorkerApi.reserve`."""
        member = self._group.members.get(request.ordinal)
        if member is None or member.name != request.member:
            raise Conflict(
                f"The member {request.member!r} was declared anew since {request.checkpoint}, at another path or as another kind: that "
                "checkpoint has the old one. Restore it to a new path."
            )
        operation_id = request.operation_id
        self._reserved.setdefault(operation_id, _Rewind(member))  # first: a release may come while it is captured
        try:
            await member.reserve(operation_id, force=request.force_disconnect)
        except BaseException:
            self._reserved.pop(operation_id, None)
            raise
        if operation_id not in self._reserved:
            member.let_go(operation_id)

    def begin(self, request: WorkerRewind) -> None:
        """See `WorkerApi.rewind`."""
        found = self._find(request.operation_id)
        if found.task is None:
            found.task = asyncio.create_task(self._run(request, found), name=f"rewind {request.operation_id}")

    def progress(self, operation_id: str) -> RewindProgress:
        """See `WorkerApi.rewind_progress`."""
        found = self._find(operation_id)
        if found.task is None:
            return RewindProgress()
        state = "running" if not found.task.done() else "failed" if found.error else "done"
        return RewindProgress.model_validate({"state": state, "error": found.error, **asdict(found.tally)})

    async def release(self, operation_id: str) -> None:
        """See `WorkerApi.release`."""
        found = self._reserved.pop(operation_id, None)
        if found is None:
            return
        if found.task is not None:
            found.task.cancel()
            await asyncio.gather(found.task, return_exceptions=True)
        found.member.let_go(operation_id)
        log.info("member %s: operation %s lets it go", found.member.name, operation_id)

    async def stop(self) -> None:
        """The group is being detached: end what is under way."""
        for operation_id in list(self._reserved):
            await self.release(operation_id)

    def _find(self, operation_id: str) -> _Rewind:
        if operation_id not in self._reserved:
            raise NotFound(f"Operation {operation_id} has nothing reserved here (any more): the worker was restarted.")
        return self._reserved[operation_id]

    async def _run(self, request: WorkerRewind, found: _Rewind) -> None:
        try:
            await self._write(request, found)
        except DpacError as error:
            found.error = error.message
        except OSError as error:
            found.error = f"{found.member.spec.path}: {error.strerror or error}."
        except asyncio.CancelledError:
            found.error = "It was stopped."
            raise
        except Exception as error:
            log.exception("rewind %s failed", request.operation_id)
            found.error = f"An internal error: {type(error).__name__}: {error}. The worker's log has more."
        tally = found.tally
        log.info(
            "member %s: operation %s wrote %d bytes, zeroed %d and removed %d paths to go back to %s%s",
            found.member.name, request.operation_id, tally.bytes_written, tally.bytes_zeroed,
            tally.paths_removed, request.checkpoint,
            f"; it failed: {found.error}" if found.error else "",
        )  # fmt: skip

    async def _write(self, request: WorkerRewind, found: _Rewind) -> None:
        volume, directory = found.member.volume, found.member.directory
        now, then, ordinal = *await asyncio.to_thread(self._images, request), request.ordinal
        if volume is not None:
            ranges = await asyncio.to_thread(changed_ranges, now, then, ordinal)
            await rewind_volume(volume, await asyncio.to_thread(then.volume, ordinal), ranges, found.tally)
        elif directory is not None:
            files = await asyncio.to_thread(changed_files, now, then, ordinal)
            trees = [await asyncio.to_thread(image.tree, ordinal) for image in (now, then)]
            await directory.rewind(trees[0], trees[1], files, found.tally)
        else:
            raise Conflict(f"The member {request.member!r} was detached meanwhile. Attach it, and restore again.")

    def _images(self, request: WorkerRewind) -> tuple[Image, Image]:
        """What the group holds, and what it goes back to, of one reader. Blocks."""
        reader = self._open_reader(self._group.assignment.key, self._group.assignment.targets[request.target])
        reader.refresh()
        now, then = (reader.resolve(one) for one in (request.safety_checkpoint, request.checkpoint))
        return reader.image(now), reader.image(then)
