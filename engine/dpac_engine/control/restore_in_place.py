"""Restore in place: a member goes back to a checkpoint where it lies, after a safety checkpoint of what it holds now.

Control decides and waits; the worker, which alone writes to members, writes what differs. What is cut short leaves the
member between the two checkpoints: whoever reads of the failure is told how to go on or back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dpac_api.errors import Conflict, DpacError, Invalid, NotFound, Temporary, TimedOut, Unreachable, Unrecoverable
from dpac_api.models import Checkpoint, CheckpointRequest, RestoreReport, RestoreRequest
from dpac_engine.control.browsing import held_member
from dpac_engine.control.operations import RESTARTED, Cast, Run
from dpac_engine.control.restore import Restore
from dpac_engine.control.worker_api import RewindProgress, WorkerRewind

_CHOOSE, _SAFETY, _WRITE, _MARK = "choose checkpoint", "safety checkpoint", "write what differs", "checkpoint"
POLL_SECONDS = 0.2
SAFETY_SECONDS_MAX = 300.0
"""How long the safety checkpoint may take to reach the target; clients are kept away meanwhile."""
WORKER_AWAY_SECONDS_MAX = 60.0
"""How long a worker may not answer before the rewind in it counts as ended."""


def restoring(cast: Cast) -> Run:
    """The restore that was asked for: in place, or to a new path."""
    return RestoreInPlace(cast) if cast.operation.request.get("in_place") else Restore(cast)


class RestoreInPlace:
    """One restore in place at work (an `operations.Run`)."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._request = RestoreRequest.model_validate({**cast.operation.request, "request_id": cast.operation.id})
        self._tag = f"before-restore-{cast.operation.id}"
        self._report: RestoreReport | None = None

    def plan(self) -> Sequence[str]:
        """See `operations.Run`."""
        return [_CHOOSE, _SAFETY, _WRITE, _MARK]

    def step(self, name: str) -> str:
        """See `operations.Run`."""
        return {_CHOOSE: self._choose, _SAFETY: self._secure, _WRITE: self._write, _MARK: self._mark_end}[name]()

    def clean_up(self) -> None:
        """See `operations.Run`: the member is let go. A worker that died has let it go."""
        with suppress(Unreachable, NotFound):
            self._cast.call(self._cast.worker.release(self._cast.group.uid, self._cast.operation.id))

    def goes_on(self) -> bool:
        """See `operations.Run`: the worker that did the work may have been restarted as well."""
        return False

    def interrupted(self) -> str:
        """See `operations.Run`."""
        steps = {step.name: step for step in self._cast.operation.steps}
        if steps[_WRITE].state == "pending":
            return f"{RESTARTED} Nothing was changed."
        return f"{RESTARTED} {self._ways_on(steps[_CHOOSE].message.split()[0])}"

    def result(self) -> dict[str, Any]:
        """See `operations.Run`: a RestoreReport, once it is done."""
        return self._report.model_dump(mode="json") if self._report else {}

    # -------------------------------------------------------------- steps

    def _choose(self) -> str:
        self._started_ns = self._cast.stage.clock.monotonic_ns()
        timeline, group = self._cast.stage.timeline, self._cast.group
        self._target, self._mark, note = timeline.resolve(group, self._request.at, self._request.target)
        repository = timeline.private(group, self._target)
        name = self._request.member
        self._ordinal = held_member(repository.members_at(self._mark), self._mark, name)
        if name not in group.spec.members:
            raise Conflict(f"The group has no member {name!r} any more. Declare it again, or restore it to a new path.")
        self._spec = group.spec.members[name]
        if self._spec.kind == "volume":
            self._check_size(repository.image(self._mark).volume(self._ordinal).size_bytes)
        return f"{self._mark.id} at {self._target}{f'; {note}' if note else ''}"

    def _check_size(self, then_bytes: int) -> None:
        status = self._cast.call(self._cast.worker.status(self._cast.group.uid))
        member = status.members.get(self._request.member)
        if member is not None and member.size_bytes is not None and then_bytes > member.size_bytes:
            raise Invalid(
                f"The volume had {then_bytes} bytes at {self._mark.id} and has {member.size_bytes} now. Raise its `size` first, or restore "
                "it to a new path."
            )

    def _secure(self) -> str:
        """Nobody writes from here on: what is acknowledged is in the safety checkpoint, or is not lost."""
        cast = self._cast
        cast.call(cast.worker.reserve(self._wire(safety="")))
        self._safety = self._take(self._tag)
        self._wait_until_recoverable(self._safety)
        return f"{self._safety.id}, tagged {self._tag}, is at {self._target}"

    def _take(self, tag: str) -> Checkpoint:
        request = CheckpointRequest(request_id=self._cast.operation.id, tag=tag)
        found: Checkpoint = self._cast.call(self._cast.worker.checkpoint(self._cast.group.uid, request))
        return found

    def _wait_until_recoverable(self, checkpoint: Checkpoint) -> None:
        deadline, reason = time.monotonic() + SAFETY_SECONDS_MAX, ""
        while time.monotonic() < deadline:
            self._cast.progress(f"{checkpoint.id} is on its way to {self._target}")
            try:
                self._cast.stage.timeline.ask(
                    self._cast.group, self._target, lambda repository: repository.resolve(checkpoint.id, [])
                )
                return
            except (Unrecoverable, Temporary) as cause:
                reason = cause.message
            time.sleep(POLL_SECONDS)
        raise TimedOut(
            f"The safety checkpoint {checkpoint.id} was not at {self._target} within {SAFETY_SECONDS_MAX:.0f} s ({reason}) Nothing was "
            f"changed. See `dpac status {self._cast.group.name}`, and restore again once its lag is small."
        )

    def _write(self) -> str:
        cast = self._cast
        try:
            cast.call(cast.worker.rewind(self._wire(safety=self._safety.id)))
            self._done = self._watch()
        except DpacError as cause:
            raise type(cause)(f"{cause.message} {self._ways_on(self._mark.id)}") from cause
        return self._summary(self._done)

    def _watch(self) -> RewindProgress:
        """The rewind's progress once it has ended well."""
        answered = time.monotonic()
        while True:
            try:
                found: RewindProgress = self._cast.call(
                    self._cast.worker.rewind_progress(self._cast.group.uid, self._cast.operation.id)
                )
                answered = time.monotonic()
            except (Unreachable, TimedOut):
                if time.monotonic() - answered > WORKER_AWAY_SECONDS_MAX:
                    raise
            else:
                if found.state == "done":
                    return found
                if found.state == "failed":
                    raise DpacError(found.error)
                self._cast.progress(self._summary(found), found.done_bytes, found.total_bytes)
            time.sleep(POLL_SECONDS)

    def _mark_end(self) -> str:
        """So that a checkpoint has exactly what was restored: those taken meanwhile have a part of it."""
        last = self._take(f"after-restore-{self._cast.operation.id}")
        done = self._done
        self._report = RestoreReport(
            checkpoint=self._mark.id,
            member=self._request.member,
            to=self._spec.path,
            bytes_written=done.bytes_written,
            bytes_zeroed=done.bytes_zeroed,
            paths_written=done.paths_written,
            paths_removed=done.paths_removed,
            seconds=round((self._cast.stage.clock.monotonic_ns() - self._started_ns) / 1e9, 3),
            safety_checkpoint=self._safety.id,
            safety_tag=self._tag,
        )
        return last.id

    # -------------------------------------------------------------- words

    def _wire(self, safety: str) -> WorkerRewind:
        return WorkerRewind(
            operation_id=self._cast.operation.id,
            group_uid=self._cast.group.uid,
            ordinal=self._ordinal,
            member=self._request.member,
            target=self._target,
            checkpoint=self._mark.id,
            safety_checkpoint=safety,
            force_disconnect=self._request.force_disconnect,
        )

    def _summary(self, found: RewindProgress) -> str:
        if self._spec.kind == "volume":
            return f"{found.bytes_written} bytes written, {found.bytes_zeroed} zeroed"
        return f"{found.paths_written} paths written, {found.paths_removed} removed, {found.bytes_written} bytes"

    def _ways_on(self, checkpoint: str) -> str:
        command = f"dpac restore {self._cast.group.name} --member {self._request.member} --in-place --at"
        return (
            f"The member may hold only a part of {checkpoint} now. `{command} {checkpoint}` finishes that; `{command} tag:{self._tag}` goes back to "
            "what it held before."
        )
