"""Drills: a rehearsal of recovery that must pass for the update to succeed."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from dpac_api.client import Client
from dpac_api.errors import DpacError, Unrecoverable
from dpac_api.models import DrillReport, Operation, Phase
from dpac_provider.act import ActHandler
from dpac_provider.handler import Made, Seen
from dpac_provider.inputs import DrillInputs
from dpac_provider.values import Properties


class DrillHandler(ActHandler[DrillInputs]):
    """A drill run in create; id `drill/GROUP/OPERATION`. Its report is a fact of the past; deleting it does nothing."""

    inputs_model = DrillInputs
    output_names = (
        "operation", "checkpoint", "checkpoint_time", "consistency", "from_target", "rto_seconds", "rpo_seconds", "passed",
        "group_uid", "site_uid",
    )  # fmt: skip
    replace_on: ClassVar[tuple[str, ...]] = ("group", "at", "target", "rto", "triggers")
    ignored: ClassVar[tuple[str, ...]] = ("timeout",)

    @override
    def create(self, inputs: Properties) -> Made:
        wanted = self._parse(inputs)
        client = self._connect(wanted.site, None)
        operation = self._run(client, wanted)
        report = _passed(operation, wanted)
        return Made(f"drill/{wanted.group}/{operation.id}", {**inputs, **_facts(report), "operation": operation.id})

    def _run(self, client: Client, wanted: DrillInputs) -> Operation:
        begun = client.drill(wanted.group, at=wanted.at, target=wanted.target, rto=wanted.rto)
        return client.wait(begun.id, timeout_seconds=wanted.timeout.seconds)

    @override
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        self._client_of(outputs)
        return Seen(outputs, self._declared(outputs))


def _passed(operation: Operation, wanted: DrillInputs) -> DrillReport:
    """The report of a drill that passed; raises what it found otherwise."""
    where = f"Drill {operation.id} of group {wanted.group!r}"
    again = f"See `dpac status {wanted.group}`; correct that and run `pulumi up` again."
    if operation.phase is Phase.FAILED and not operation.result:
        raise Unrecoverable(f"{where} failed: {operation.error or 'its site does not say why'}. {again}")
    try:
        report = DrillReport.model_validate(operation.result, extra="ignore")
    except ValueError as error:
        raise DpacError(
            f"{where} ended without a report that this dpac understands. Upgrade it, or the backend."
        ) from error
    if not report.passed:
        findings = "; ".join(report.findings) or operation.error or "its report names no finding"
        raise Unrecoverable(f"{where} from {report.checkpoint} at {report.target!r} did not pass: {findings}. {again}")
    return report


def _facts(report: DrillReport) -> Properties:
    return {
        "checkpoint": report.checkpoint,
        "checkpoint_time": report.checkpoint_time.isoformat(),
        "consistency": report.consistency,
        "from_target": report.target,
        "rto_seconds": report.rto_seconds,
        "rpo_seconds": report.rpo_seconds,
        "passed": report.passed,
        "group_uid": report.group_uid,
        "site_uid": report.site_uid,
    }
