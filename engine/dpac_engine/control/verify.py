"""Verify: read every object that targets hold of a group, authenticate every byte, and remember how far it is proven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpac_api.errors import Corruption, Temporary, Unrecoverable
from dpac_api.models import VerifyFinding, VerifyReport, VerifyRequest
from dpac_engine.control.catalogue import utc
from dpac_engine.control.catalogue_operations import note_verified
from dpac_engine.control.operations import Cast, Failed
from dpac_engine.control.recovery import Verification

_PREFIX = "read "


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

    def result(self) -> dict[str, Any]:
        """See `operations.Run`: a VerifyReport."""
        return self._report.model_dump(mode="json")

    def _read(self, target: str) -> str:
        try:
            repository = self._cast.stage.timeline.private(self._cast.group, target)
            found = repository.verify(lambda count: self._cast.progress(f"{count} bytes read"))
        except (Corruption, Unrecoverable) as cause:  # the manifests themselves
            self._add(
                target,
                Verification(0, 0, 0, [], None),
                [VerifyFinding(target=target, object="manifests", problem=cause.message)],
            )
            return cause.message
        except Temporary as cause:
            self._cast.progress(cause.message)  # raises if it is the backend that stops
            self._away.append(f"{target}: {cause.message}")
            return cause.message
        findings = [
            VerifyFinding(
                target=target, object=d.object, problem=d.problem, checkpoints_affected=d.checkpoints_affected
            )
            for d in found.damages
        ]
        self._add(target, found, findings)
        return f"{found.objects} objects, {found.bytes_read} bytes, {len(findings)} findings"

    def _add(self, target: str, found: Verification, findings: list[VerifyFinding]) -> None:
        before = self._report
        through = dict(before.verified_through)
        if found.newest is not None:
            through[target] = found.newest.id
            with self._cast.stage.catalogue.write() as session:
                now = utc(self._cast.stage.clock.now_ns())
                note_verified(session, self._cast.group.uid, target, found.newest.sequence, found.newest.id, now)
        self._report = VerifyReport(
            objects=before.objects + found.objects,
            bytes_read=before.bytes_read + found.bytes_read,
            checkpoints=before.checkpoints + found.checkpoints,
            findings=[*before.findings, *findings],
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
