"""Checkpoints that a program takes, for example before it migrates a schema."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import ClassVar

from typing_extensions import override

from dpac_api.errors import NotFound, Unrecoverable
from dpac_api.models import Checkpoint, GroupStatus
from dpac_provider.act import ActHandler
from dpac_provider.handler import Made, Seen
from dpac_provider.inputs import CheckpointInputs
from dpac_provider.values import Properties


class CheckpointHandler(ActHandler[CheckpointInputs]):
    """A checkpoint taken in create; id `checkpoint/GROUP/CHECKPOINT`. Deleting it releases it if it is held, no more.

    Once every target has dropped it, `available` is false and it stays in state: another one, taken now, would not be
    what was asked for. It is gone when its group is.
    """

    inputs_model = CheckpointInputs
    output_names = ("checkpoint", "time", "consistency", "available", "group_uid", "site_uid")
    replace_on: ClassVar[tuple[str, ...]] = ("group", "tag", "app", "triggers")

    @override
    def create(self, inputs: Properties) -> Made:
        wanted = self._parse(inputs)
        client = self._connect(wanted.site, None)
        group = client.group(wanted.group)
        taken = client.take_checkpoint(
            wanted.group,
            tag=wanted.tag,
            app=wanted.app,
            hold=wanted.hold,
            hold_reason=wanted.hold_reason,
            hold_until=wanted.hold_until,
        )
        outputs = {**inputs, **_facts(taken), "available": True, "group_uid": group.uid, "site_uid": group.site_uid}
        return Made(f"checkpoint/{wanted.group}/{taken.id}", outputs)

    @override
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        client = self._client_of(outputs)
        try:
            client.group(outputs["group"])
        except NotFound:
            return None
        declared = self._declared(outputs)
        try:
            found = client.checkpoint(outputs["group"], outputs["checkpoint"])
            facts = {**_facts(found), "available": True}
            if declared.get("hold") and not found.held and not _is_over(self._parse(declared)):
                # Somebody released it: the next update holds it again.
                declared = {**declared, "hold": False, "hold_reason": "", "hold_until": None}
        except (NotFound, Unrecoverable):
            # Not at any target: on its way there still, or dropped again.
            facts = {"available": False} if _is_past(client.group_status(outputs["group"]), outputs) else {}
        return Seen({**outputs, **facts, **declared}, declared)

    @override
    def update(self, resource_id: str, old: Properties, new: Properties) -> Properties:
        """Hold it, change why and for how long, or release it."""
        outputs = super().update(resource_id, old, new)
        wanted, was = self._parse(new), self._parse(old)
        if wanted.hold and _of_hold(wanted) != _of_hold(was):
            self._client_of(outputs).hold(
                wanted.group, old["checkpoint"], reason=wanted.hold_reason, until=wanted.hold_until
            )
        elif was.hold and not wanted.hold:
            self._release(outputs)
        return outputs

    @override
    def delete(self, resource_id: str, outputs: Properties) -> None:
        if self._parse(outputs).hold:
            self._release(outputs)

    def _release(self, outputs: Properties) -> None:
        with contextlib.suppress(NotFound):  # by hand, by its time, or with its group
            self._client_of(outputs).release(outputs["group"], outputs["checkpoint"])


def _of_hold(inputs: CheckpointInputs) -> tuple[bool, str, datetime | None]:
    return inputs.hold, inputs.hold_reason, inputs.hold_until


def _is_over(inputs: CheckpointInputs) -> bool:
    """Whether a hold was to end by now."""
    return inputs.hold_until is not None and inputs.hold_until <= datetime.now(UTC)


def _is_past(status: GroupStatus, outputs: Properties) -> bool:
    """Whether every leg has shipped beyond a checkpoint."""
    taken = datetime.fromisoformat(outputs["time"])
    newest = [leg.latest_checkpoint_time for leg in status.legs.values()]
    return bool(newest) and all(time is not None and time > taken for time in newest)


def _facts(taken: Checkpoint) -> Properties:
    return {"checkpoint": taken.id, "time": taken.time.isoformat(), "consistency": taken.consistency}
