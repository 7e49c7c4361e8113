"""Checkpoints that a program takes, for example before it migrates a schema."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from dpac_api.errors import NotFound, Unrecoverable
from dpac_api.models import Checkpoint
from dpac_provider.act import ActHandler
from dpac_provider.handler import Made, Seen
from dpac_provider.inputs import CheckpointInputs
from dpac_provider.values import Properties


class CheckpointHandler(ActHandler[CheckpointInputs]):
    """A checkpoint taken in create; id `checkpoint/GROUP/CHECKPOINT`. Deleting it does nothing to data.

    Once retention has dropped it, `available` is false and it stays in state: another one, taken now, would not be
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
            facts = {"available": False}
        return Seen({**outputs, **facts}, self._declared(outputs))


def _facts(taken: Checkpoint) -> Properties:
    return {"checkpoint": taken.id, "time": taken.time.isoformat(), "consistency": taken.consistency}
