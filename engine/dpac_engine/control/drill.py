"""Drill: rehearse recovery from a target, measure it, and sign what was found.

Isolated: everything is read from the repository, and the checkpoint is mounted, volumes and directories, as whoever recovers
would do; what the checks write stays in that mount. Nothing of it touches the members or the replication.

    choose checkpoint -> open image -> mount -> one step a member -> report
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dpac_api.errors import Corruption, DpacError, NotFound, Temporary
from dpac_api.models import DirectorySpec, DrillReport, DrillRequest, MemberDrill
from dpac_engine.control import drill_report
from dpac_engine.control.catalogue import utc
from dpac_engine.control.operations import RESTARTED, Cast, Failed
from dpac_engine.control.recovery import ImageView, MemberView
from dpac_engine.control.volume_restore import stored_bytes
from dpac_engine.control.worker_api import WorkerMount
from dpac_engine.core.checkpoints import Mark
from dpac_engine.io.stored_runs import each_run, read_whole

_CHOOSE, _OPEN, _MOUNT, _REPORT = "choose checkpoint", "open image", "mount", "report"


class Drill:
    """One drill at work (an `operations.Run`)."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._request = DrillRequest.model_validate({**cast.operation.request, "request_id": cast.operation.id})
        self._members: dict[str, MemberDrill] = {}
        self._findings: list[str] = []
        self._report: DrillReport | None = None
        self._places: dict[str, str] = {}
        """Where the members are mounted; empty if they could not be."""
        self._mount_id = f"{cast.operation.id}-drill"

    def plan(self) -> Sequence[str]:
        """See `operations.Run`: one step a member of the group as it is now."""
        members = self._cast.group.spec.members
        return [_CHOOSE, _OPEN, _MOUNT, *(f"{spec.kind} {name}" for name, spec in members.items()), _REPORT]

    def step(self, name: str) -> str:
        """See `operations.Run`."""
        steps = {_CHOOSE: self._choose, _OPEN: self._open, _MOUNT: self._mount, _REPORT: self._sign}
        if name in steps:
            return steps[name]()
        return self._check_member(name.partition(" ")[2])

    def clean_up(self) -> None:
        """See `operations.Run`."""
        with suppress(NotFound):
            self._cast.call(self._cast.worker.unmount(self._mount_id))

    def goes_on(self) -> bool:
        """See `operations.Run`."""
        return False

    def interrupted(self) -> str:
        """See `operations.Run`."""
        return RESTARTED

    def result(self) -> dict[str, Any]:
        """See `operations.Run`: a DrillReport, once there is one."""
        return self._report.model_dump(mode="json") if self._report else {}

    # -------------------------------------------------------------- steps

    def _choose(self) -> str:
        self._started = self._now()
        self._started_ns = self._cast.stage.clock.monotonic_ns()
        timeline, group = self._cast.stage.timeline, self._cast.group
        self._target, self._mark, note = timeline.resolve(group, self._request.at, self._request.target)
        self._age_seconds = max(0.0, (self._started - utc(self._mark.stamp_ns)).total_seconds())
        return f"{self._mark.id} at {self._target}, {self._age_seconds:.1f} s old{f'; {note}' if note else ''}"

    def _open(self) -> str:
        repository = self._cast.stage.timeline.private(self._cast.group, self._target)
        self._image: ImageView = repository.image(self._mark)
        self._held: dict[str, tuple[int, MemberView]] = {
            member.name: (ordinal, member) for ordinal, member in repository.members_at(self._mark).items()
        }
        for name in self._cast.group.spec.members:
            if name not in self._held:
                self._findings.append(
                    f"member {name}: it is not in checkpoint {self._mark.id}; it was not seeded by then"
                )
        return f"{len(self._held)} members"

    def _mount(self) -> str:
        if not self._held:
            return "the checkpoint holds no member"
        request = WorkerMount(
            mount_id=self._mount_id,
            shards=len(self._cast.group.shards),
            group_uid=self._cast.group.uid,
            target=self._target,
            checkpoint=self._mark.id,
            members=list(self._held),
        )
        try:
            mount = self._cast.call(self._cast.worker.mount(request))
            for name, (_, member) in self._held.items():
                if member.kind == "volume":
                    self._cast.stage.greet(mount.members[name])
        except (Temporary, Corruption) as cause:  # the rest can still be read, and is worth knowing
            finding = f"the checkpoint cannot be mounted: {cause.message}"
            self._findings.append(finding)
            return finding
        self._places = mount.members
        return f"{len(self._places)} members answer{f'; {mount.note}' if mount.note else ''}"

    def _check_member(self, name: str) -> str:
        if name not in self._held:
            return "not in this checkpoint"
        ordinal, member = self._held[name]
        try:
            found = self._check_volume(ordinal) if member.kind == "volume" else self._check_directory(name, ordinal)
        except (Corruption, NotFound, OSError) as cause:
            message = cause.message if isinstance(cause, DpacError) else str(cause)
            self._findings.append(f"member {name}: {message}")
            return message
        self._members[name] = found
        bad = {check: what for check, what in found.checks.items() if what != "ok"}
        self._findings.extend(f"member {name}: {check}: {what}" for check, what in bad.items())
        return (
            "; ".join(f"{check}: {what}" for check, what in bad.items())
            or f"{found.checked_bytes} bytes read, all sound"
        )

    def _check_volume(self, ordinal: int) -> MemberDrill:
        volume = self._image.volume(ordinal)
        volume.read(0, min(512, volume.size_bytes))
        opened_seconds = self._elapsed_seconds()
        goal, done = stored_bytes(volume), 0
        for _, length in each_run(volume.runs(), read_whole):
            done += length
            self._cast.progress(f"{done} of {goal} bytes read", done, goal)
        return MemberDrill(opened_seconds=opened_seconds, checked_bytes=done, checks={"every block authentic": "ok"})

    def _check_directory(self, name: str, ordinal: int) -> MemberDrill:
        tree = self._image.tree(ordinal)
        next(tree.entries(), None)
        opened_seconds = self._elapsed_seconds()
        recovery = self._cast.stage.recovery
        done = recovery.read_tree(
            tree, lambda done, total: self._cast.progress(f"{done} of {total} bytes read", done, total)
        )
        checks = {"every file authentic": "ok"}
        spec, place = self._cast.group.spec.members.get(name), self._places.get(name)
        if isinstance(spec, DirectorySpec) and spec.blueprint is not None and place is not None:
            found = recovery.check(spec.blueprint, Path(place))
            checks |= {f"{spec.blueprint} {check}": what for check, what in found.items()}
        return MemberDrill(opened_seconds=opened_seconds, checked_bytes=done, checks=checks)

    def _sign(self) -> str:
        rto_seconds = self._elapsed_seconds()
        goal = self._request.rto
        if goal is not None and rto_seconds > goal.seconds:
            self._findings.append(f"recovery took {rto_seconds:.1f} s, longer than the RTO of {goal}")
        self._report = drill_report.sign(self._unsigned(self._mark, rto_seconds), self._cast.stage.signer)
        if self._findings:
            raise Failed(f"The drill failed: {'; '.join(self._findings)}.")
        return f"passed: RPO {self._age_seconds:.1f} s, RTO {rto_seconds:.1f} s"

    def _unsigned(self, mark: Mark, rto_seconds: float) -> DrillReport:
        group = self._cast.group
        return DrillReport(
            group=group.name,
            group_uid=group.uid,
            site_uid=self._cast.stage.host.site.site_uid,
            target=self._target,
            checkpoint=mark.id,
            checkpoint_time=utc(mark.stamp_ns),
            consistency="app" if mark.body.app else "crash",
            started=self._started,
            finished=self._now(),
            rpo_seconds=round(self._age_seconds, 3),
            rto_seconds=round(rto_seconds, 3),
            rto_goal_seconds=self._request.rto.seconds if self._request.rto else None,
            members=self._members,
            passed=not self._findings,
            findings=list(self._findings),
        )

    def _elapsed_seconds(self) -> float:
        return (self._cast.stage.clock.monotonic_ns() - self._started_ns) / 1e9

    def _now(self) -> datetime:
        return utc(self._cast.stage.clock.now_ns())
