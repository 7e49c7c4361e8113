"""Verify: read every object that targets hold of a group, authenticate every byte, and remember how far it is proven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpac_api.errors import Temporary, Unrecoverable
from dpac_api.models import (
    CheckpointRun,
    DamagedMember,
    DamagedRange,
    SpareObject,
    VerifyFinding,
    VerifyReport,
    VerifyRequest,
)
from dpac_engine.control.catalogue import utc
from dpac_engine.control.catalogue_operations import newest_manifest, note_verified
from dpac_engine.control.operations import RESTARTED, Cast, Failed
from dpac_engine.core.damage import Finding, Verification

_PREFIX = "read "
SPARES_MAX = 1000
"""Of each target, in the report."""


class Verify:
    """One verification at work (an `operations.Run`): a step a target, then the verdict."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._request = VerifyRequest.model_validate({**cast.operation.request, "request_id": cast.operation.id})
        self._report = VerifyReport(objects=0, bytes_read=0, checkpoints=0)
        self._away: list[str] = []

    def plan(self) -> Sequence[str]:
        """See `operations.Run`."""
        targets = [self._request.target] if self._request.target else self._cast.group.targets
        return [*(f"{_PREFIX}{target}" for target in targets), "report"]

    def step(self, name: str) -> str:
        """See `operations.Run`."""
        return self._verdict() if name == "report" else self._read(name.removeprefix(_PREFIX))

    def clean_up(self) -> None:
        """See `operations.Run`: nothing is left behind."""

    def goes_on(self) -> bool:
        """See `operations.Run`."""
        return False

    def interrupted(self) -> str:
        """See `operations.Run`."""
        return RESTARTED

    def result(self) -> dict[str, Any]:
        """See `operations.Run`: a VerifyReport."""
        return self._report.model_dump(mode="json")

    def _read(self, target: str) -> str:
        group = self._cast.group
        try:
            repository = self._cast.stage.recovery.open(group.targets[target], group.uid, len(group.shards))
            with self._cast.stage.catalogue.read() as session:
                manifest_before = newest_manifest(session, group.uid, target)
            found = repository.verify(
                lambda done, total: self._cast.progress(f"{done} bytes read", done, total), manifest_before
            )
        except Unrecoverable as cause:
            raise Unrecoverable(f"The target {target!r}: {cause.message}") from None
        except Temporary as cause:
            self._cast.progress(cause.message)  # raises if it is the backend that stops
            self._away.append(f"{target}: {cause.message}")
            return cause.message
        self._add(target, found)
        return f"{found.objects} objects, {found.bytes_read} bytes, {len(found.findings)} findings"

    def _add(self, target: str, found: Verification) -> None:
        before = self._report
        through = dict(before.verified_through)
        if found.newest is not None:
            through[target] = found.newest.id
        with self._cast.stage.catalogue.write() as session:
            note_verified(session, self._cast.group.uid, target, found, utc(self._cast.stage.clock.now_ns()))
        spares = [SpareObject(target=target, object=at, reason=why) for at, why in found.spares[:SPARES_MAX]]
        self._report = VerifyReport(
            objects=before.objects + found.objects,
            bytes_read=before.bytes_read + found.bytes_read,
            checkpoints=before.checkpoints + found.checkpoints,
            findings=[*before.findings, *(_wire(target, finding) for finding in found.findings)],
            spares=[*before.spares, *spares],
            verified_through=through,
        )

    def _verdict(self) -> str:
        problems: list[str] = list(self._away)
        if self._report.findings:
            first = self._report.findings[0]
            problems.append(
                f"{len(self._report.findings)} objects are damaged, the first: {first.object}: {first.problem}"
            )
        if problems:
            raise Failed(f"The verification failed: {'; '.join(problems)}.")
        return f"{self._report.checkpoints} checkpoints are readable"


def _wire(target: str, found: Finding) -> VerifyFinding:
    return VerifyFinding(
        target=target,
        object=found.object,
        problem=found.problem,
        checkpoints=[
            CheckpointRun(first=run.first, last=run.last, open_ended=run.last_sequence is None) for run in found.runs
        ],
        exact=found.exact,
        members=[
            DamagedMember(
                member=part.member,
                ranges=[DamagedRange(offset=offset, length=length) for offset, length in part.ranges],
                paths=list(part.paths),
                more=part.more,
            )
            for part in found.lost
        ],
    )
