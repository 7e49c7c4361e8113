"""Encryption: who can open a group's recovery points when its site is lost."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from dpac_api.escrow_keys import EscrowKey
from dpac_api.models.fields import Model


def _each_once(keys: list[str]) -> list[str]:
    return sorted(set(keys))


class EncryptionSpec(Model):
    """Everything at a target is encrypted, always; this says to whom beside the site the data key is given."""

    escrow: Annotated[list[EscrowKey], AfterValidator(_each_once)] = Field(
        default=[],
        max_length=16,
        description="Public escrow keys: who has the private half of one opens the group's recovery points at any target.",
    )
