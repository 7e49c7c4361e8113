"""Checkpoints that a program takes, for example before it migrates a schema."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from typing_extensions import override

from dpac_api.errors import NotFound, Unrecoverable
from dpac_api.models import Checkpoint, GroupStatus
from dpac_provider.act import ActHandler
from dpac_provider.handler import Made, Seen
from dpac_provider.inputs import CheckpointInputs
from dpac_provider.values import Properties


class CheckpointHandler(ActHandler[CheckpointInputs]):
    """A checkpoint taken in create; id `checkpoint/GROUP/CHECKPOINT`. Deleting it does nothing to data.

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
        taken = client.take_checkpoint(wanted.group, tag=wanted.tag, app=wanted.app)
        outputs = {**inputs, **_facts(taken), "available": True, "group_uid": group.uid, "site_uid": group.site_uid}
        return Made(f"checkpoint/{wanted.group}/{taken.id}", outputs)

    @override
    def read(self, resource_id: str, outputs: Properties) -> Seen | None:
        client = self._client_of(outputs)
        try:
            client.group(outputs["group"])
        except NotFound:
            return None
        try:
            facts = {**_facts(client.checkpoint(outputs["group"], outputs["checkpoint"])), "available": True}
        except (NotFound, Unrecoverable):
            # Not at any target: on its way there still, or dropped again.
            facts = {"available": False} if _is_past(client.group_status(outputs["group"]), outputs) else {}
        return Seen({**outputs, **facts}, self._declared(outputs))


def _is_past(status: GroupStatus, outputs: Properties) -> bool:
    """Whether every leg has shipped beyond a checkpoint."""
    taken = datetime.fromisoformat(outputs["time"])
    newest = [leg.latest_checkpoint_time for leg in status.legs.values()]
    return bool(newest) and all(time is not None and time > taken for time in newest)


def _facts(taken: Checkpoint) -> Properties:
    return {"checkpoint": taken.id, "time": taken.time.isoformat(), "consistency": taken.consistency}
