"""Restore in place: a member goes back to a checkpoint where it lies, after a safety checkpoint of what it holds now.

Control decides and waits; the worker, which alone writes to members, writes what differs. A control process that dies is
not missed: the next one finds the worker at work, or done. After a worker's death the next worker begins again, from a safety
checkpoint of what the member holds by then. What fails leaves the member between the two checkpoints: whoever reads of it is told how to go on or back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from dpac_api.errors import Conflict, DpacError, Invalid, NotFound, Temporary, TimedOut, Unreachable, Unrecoverable
from dpac_api.models import Checkpoint, CheckpointRequest, MemberSpec, RestoreReport, RestoreRequest
from dpac_api.models.fields import Model
from dpac_engine.control.browsing import held_member
from dpac_engine.control.catalogue import utc
from dpac_engine.control.operations import RESTARTED, Cast, Run
from dpac_engine.control.restore import Restore
from dpac_engine.control.worker_api import RewindProgress, WorkerApi, WorkerRewind

_CHOOSE, _SAFETY, _WRITE, _MARK = "choose checkpoint", "safety checkpoint", "write what differs", "checkpoint"
POLL_SECONDS = 0.2
SAFETY_SECONDS_MAX = 300.0
"""How long the safety checkpoint may take to reach the target; clients are kept away meanwhile."""
WORKER_AWAY_SECONDS_MAX = 60.0
"""How long a worker may not answer, or not have attached the member, before the rewind in it counts as ended."""
WRITES_MAX = 3
"""How often it is begun in a worker: one that dies of it shall not do so for ever."""


class _Known(Model):
    """What a run that is taken up again must know; its result until there is a report."""

    target: str
    checkpoint: str
    ordinal: int
    safety_checkpoint: str = ""
    written: RewindProgress | None = None


def restoring(cast: Cast) -> Run:
    """The restore that was asked for: in place, or to a new path."""
    return RestoreInPlace(cast) if cast.operation.request.get("in_place") else Restore(cast)


class RestoreInPlace:
    """One restore in place at work (an `operations.Run`)."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._request = RestoreRequest.model_validate({**cast.operation.request, "request_id": cast.operation.id})
        group = cast.group
        self._key, self._worker_index = group.shards[group.member_shards.get(self._request.member, 0)]
        self._tag = f"before-restore-{cast.operation.id}"
        self._known: _Known | None = None
        with suppress(ValueError):  # nothing is known yet
            self._known = _Known.model_validate(cast.operation.result)
        self._since = ""
        """The checkpoint of what the member has held since it was reserved; empty: another process reserved it."""
        self._report: RestoreReport | None = None
        with suppress(ValueError):  # it is not over yet
            self._report = RestoreReport.model_validate(cast.operation.result)

    @property
    def _worker(self) -> WorkerApi:
        """That of the member's shard; checkpoints are those of all shards, and asked of the group's."""
        return self._cast.worker_at(self._worker_index)

    def plan(self) -> Sequence[str]:
        """See `operations.Run`."""
        return [_CHOOSE, _SAFETY, _WRITE, _MARK]

    def step(self, name: str) -> str:
        """See `operations.Run`."""
        if self._report is not None:
            return next(step.message for step in self._cast.operation.steps if step.name == name)
        return {_CHOOSE: self._choose, _SAFETY: self._secure, _WRITE: self._write, _MARK: self._mark_end}[name]()

    def clean_up(self) -> None:
        """See `operations.Run`: the member is let go. A worker that died has let it go."""
        with suppress(Unreachable, NotFound):
            self._cast.call(self._worker.release(self._key, self._cast.operation.id))

    def goes_on(self) -> bool:
        """See `operations.Run`: also before anything is known, since nothing was changed then."""
        return self._known is not None or self._report is not None or self._cast.operation.steps[0].state != "done"

    def interrupted(self) -> str:
        """See `operations.Run`."""
        steps = {step.name: step for step in self._cast.operation.steps}
        if steps[_WRITE].state == "pending":
            return f"{RESTARTED} Nothing was changed."
        return f"{RESTARTED} {self._ways_on(steps[_CHOOSE].message.split()[0])}"

    def result(self) -> dict[str, Any]:
        """See `operations.Run`: a RestoreReport, once it is done."""
        known = self._report or self._known
        return known.model_dump(mode="json") if known else {}

    # -------------------------------------------------------------- steps

    def _choose(self) -> str:
        self._spec = self._member_spec()
        if self._known is not None:
            return f"{self._known.checkpoint} at {self._known.target}"
        timeline, group = self._cast.stage.timeline, self._cast.group
        target, mark, note = timeline.resolve(group, self._request.at, self._request.target)
        repository = timeline.private(group, target)
        ordinal = held_member(repository.members_at(mark), mark, self._request.member)
        if self._spec.kind == "volume":
            self._check_size(mark.id, repository.image(mark).volume(ordinal).size_bytes)
        self._known = _Known(target=target, checkpoint=mark.id, ordinal=ordinal)
        return f"{mark.id} at {target}{f'; {note}' if note else ''}"

    def _member_spec(self) -> MemberSpec:
        name = self._request.member
        if name not in self._cast.group.spec.members:
            raise Conflict(f"The group has no member {name!r} any more. Declare it again, or restore it to a new path.")
        return self._cast.group.spec.members[name]

    def _check_size(self, checkpoint: str, then_bytes: int) -> None:
        status = self._cast.call(self._worker.status(self._key))
        member = status.members.get(self._request.member)
        if member is not None and member.size_bytes is not None and then_bytes > member.size_bytes:
            raise Invalid(
                f"The volume had {then_bytes} bytes at {checkpoint} and has {member.size_bytes} now. Raise its `size` first, or restore "
                "it to a new path."
            )

    def _secure(self) -> str:
        """Nobody writes from here on: what is acknowledged is in the safety checkpoint, or is not lost."""
        safety = self._chosen.safety_checkpoint
        if safety:
            return f"{safety}, tagged {self._tag}, is at {self._chosen.target}"
        self._cast.call(self._worker.reserve(self._wire()))
        self._since = safety = self._safeguard(self._tag)
        self._known = self._chosen.model_copy(update={"safety_checkpoint": safety})
        return f"{safety}, tagged {self._tag}, is at {self._chosen.target}"

    @property
    def _chosen(self) -> _Known:
        assert self._known is not None, "the first step comes first"
        return self._known

    def _safeguard(self, tag: str) -> str:
        """The id of a checkpoint of what the member holds now, which is at the target."""
        found = self._take(tag)
        self._wait_until_recoverable(found)
        return found.id

    def _take(self, tag: str) -> Checkpoint:
        request = CheckpointRequest(request_id=self._cast.operation.id, tag=tag)
        found: Checkpoint = self._cast.call(self._cast.worker.checkpoint(self._cast.group.uid, request))
        return found

    def _wait_until_recoverable(self, checkpoint: Checkpoint) -> None:
        deadline, reason = time.monotonic() + SAFETY_SECONDS_MAX, ""
        while time.monotonic() < deadline:
            self._cast.progress(f"{checkpoint.id} is on its way to {self._chosen.target}")
            try:
                found, _ = self._cast.stage.timeline.ask(
                    self._cast.group, self._chosen.target, lambda repository: repository.resolve(checkpoint.id, [])
                )
                if found.lsn in checkpoint.lsn.values():
                    return
                # A sync leg's target lists the end of what it has under the number of the checkpoint to come.
                reason = "What it has ends before that checkpoint."
            except (Unrecoverable, Temporary) as cause:
                reason = cause.message
            time.sleep(POLL_SECONDS)
        raise TimedOut(
            f"The safety checkpoint {checkpoint.id} was not at {self._chosen.target} within {SAFETY_SECONDS_MAX:.0f} s ({reason}) Nothing was "
            f"changed. See `dpac status {self._cast.group.name}`, and restore again once its lag is small."
        )

    def _write(self) -> str:
        try:
            done = self._chosen.written or self._rewind()
        except DpacError as cause:
            raise type(cause)(f"{cause.message} {self._ways_on(self._chosen.checkpoint)}") from cause
        self._known = self._chosen.model_copy(update={"written": done})
        return self._summary(done)

    def _rewind(self) -> RewindProgress:
        """Begun in the worker, or found there at work or done. Where a worker has died of it or under it, begun in the next."""
        for number in range(1, WRITES_MAX + 1):
            try:
                if not self._since and self._progress().state == "reserved":
                    # Clients may have been let in before: what they wrote is to be had, and counts for what differs.
                    self._since = self._safeguard(f"{self._tag}-{number}")
                self._ask(lambda: self._worker.rewind(self._wire()))
                return self._watch()
            except NotFound:
                if number == WRITES_MAX:
                    raise
                self._since = ""
                self._reserve_again()
        raise AssertionError("it returns or raises")

    def _reserve_again(self) -> None:
        deadline = time.monotonic() + WORKER_AWAY_SECONDS_MAX
        while True:
            with suppress(NotFound):  # the group is not there yet
                status = self._ask(lambda: self._worker.status(self._key))
                member = status.members.get(self._request.member)
                if member is not None and member.state == "Attached":
                    self._ask(lambda: self._worker.reserve(self._wire()))
                    return
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"The member was not attached within {WORKER_AWAY_SECONDS_MAX:.0f} s after its worker was restarted."
                )
            time.sleep(POLL_SECONDS)

    def _watch(self) -> RewindProgress:
        """The rewind's progress once it has ended well."""
        while True:
            found = self._progress()
            if found.state == "done":
                return found
            if found.state == "failed":
                raise DpacError(found.error)
            self._cast.progress(self._summary(found), found.done_bytes, found.total_bytes)
            time.sleep(POLL_SECONDS)

    def _progress(self) -> RewindProgress:
        found: RewindProgress = self._ask(lambda: self._worker.rewind_progress(self._key, self._cast.operation.id))
        return found

    def _ask(self, question: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The worker's answer, also if it is just being restarted; it may be asked more than once."""
        deadline = time.monotonic() + WORKER_AWAY_SECONDS_MAX
        while True:
            try:
                return self._cast.call(question())
            except (Unreachable, TimedOut):
                if time.monotonic() > deadline:
                    raise
            self._cast.progress("the worker does not answer; it may be starting")
            time.sleep(POLL_SECONDS)

    def _mark_end(self) -> str:
        """So that a checkpoint has exactly what was restored: those taken meanwhile have a part of it."""
        last = self._take(f"after-restore-{self._cast.operation.id}")
        known, done = self._chosen, self._chosen.written or RewindProgress()
        elapsed = utc(self._cast.stage.clock.now_ns()) - self._cast.operation.created
        self._report = RestoreReport(
            checkpoint=known.checkpoint,
            member=self._request.member,
            to=self._spec.path,
            bytes_written=done.bytes_written,
            bytes_zeroed=done.bytes_zeroed,
            paths_written=done.paths_written,
            paths_removed=done.paths_removed,
            seconds=round(elapsed.total_seconds(), 3),
            safety_checkpoint=known.safety_checkpoint,
            safety_tag=self._tag,
        )
        return last.id

    # -------------------------------------------------------------- words

    def _wire(self) -> WorkerRewind:
        return WorkerRewind(
            operation_id=self._cast.operation.id,
            group_uid=self._key,
            ordinal=self._chosen.ordinal,
            member=self._request.member,
            target=self._chosen.target,
            checkpoint=self._chosen.checkpoint,
            safety_checkpoint=self._since,
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
