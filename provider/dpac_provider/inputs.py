"""The arguments of each resource: the wire models, plus what makes a declaration of them.

Property names are the wire's, in state as in messages, so that a native plugin can serve the same resources.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, field_validator

from dpac_api.models import (
    DrillRequest,
    FilesystemTargetSpec,
    GroupSpec,
    Model,
    Name,
    Owner,
    S3TargetSpec,
    Selector,
    Tag,
    TargetSpec,
    target_spec_of,
)
from dpac_api.quantities import Duration

SiteName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=63,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Letters, digits, dots, dashes and underscores, at most 63: the NAME in `dpac:sites.NAME`.",
    ),
]
OwnerLabel = Annotated[
    str,
    Field(pattern=r"^[^/]{1,200}/[^/]{1,200}/[^/]{1,200}$", description="ORGANIZATION/PROJECT/STACK."),
]


def owner_of(label: str | None) -> Owner | None:
    """The wire's owner for a label."""
    if label is None:
        return None
    organization, project, stack = label.split("/")
    return Owner(organization=organization, project=project, stack=stack)


def _from_one_second_to_a_week(value: Duration) -> Duration:
    if not 1 <= value.seconds <= 7 * 86_400:
        raise ValueError(f"{value} is out of bounds; it may be from 1s to 7d")
    return value


Timeout = Annotated[Duration, AfterValidator(_from_one_second_to_a_week)]


class Located(Model):
    """What belongs to a site."""

    site: SiteName | None = Field(
        default=None, description="The site's name in `dpac:sites` or the context file; None: the only or current one."
    )


class Declaration(Located):
    """What has a name on a site and one owner."""

    name: Name = Field(description="The name on the site; another name is another resource.")
    owner: OwnerLabel | None = Field(default=None, description="The stack that declares it. A label, set by dpac.")
    adopt: bool = Field(default=False, description="Take it over if another owner, or none, has it.")


class TargetInputs(Declaration):
    """Where copies go: what every kind of target has beside its spec."""

    def spec(self) -> TargetSpec:
        """The desired state that the backend is sent."""
        return target_spec_of({name: value for name, value in self if name not in Declaration.model_fields})


class FilesystemTargetInputs(FilesystemTargetSpec, TargetInputs):
    """A directory on the backend's host."""


class S3TargetInputs(S3TargetSpec, TargetInputs):
    """A bucket."""


TARGET_INPUTS: dict[str, type[TargetInputs]] = {"filesystem": FilesystemTargetInputs, "s3": S3TargetInputs}
"""Kind of target -> its arguments."""


class GroupInputs(GroupSpec, Declaration):
    """What is protected together, and how."""

    def spec(self) -> GroupSpec:
        """The desired state that the backend is sent."""
        return GroupSpec.model_validate({name: getattr(self, name) for name in GroupSpec.model_fields})


class OfGroup(Located):
    """What is done with a group."""

    group: Name = Field(description="The group's name.")
    triggers: list[JsonValue] = Field(default=[], description="Any values: it is done again when one of them changes.")


class ReadyInputs(OfGroup):
    """Wait for a group."""

    until: Literal["seeded", "protected"] = Field(
        default="protected",
        description="`seeded`: every member is in the group's checkpoints on every leg. `protected`: and every RPO is met.",
    )
    timeout: Timeout = Field(default=Duration("10m"), description="How long to wait before the update fails.")


class CheckpointInputs(OfGroup):
    """Mark a group."""

    tag: Tag | None = Field(
        default=None, description="A name for it, kept as long as the leg's retention says for tags."
    )
    app: bool = Field(default=False, description="Quiesce by the members' blueprints first: application-consistent.")
    hold: bool = Field(default=False, description="No retention drops it until this resource is deleted.")
    hold_reason: str = Field(default="", max_length=500, description="Why, for whoever finds it held.")
    hold_until: datetime | None = Field(default=None, description="When it is released by itself; None: never.")

    @field_validator("hold_reason", "hold_until")
    @classmethod
    def _of_a_hold(cls, value: object, info: ValidationInfo) -> object:
        if value and not info.data.get("hold"):
            raise ValueError("tells of a hold; set hold=True as well, or leave it out.")
        return value


class DrillInputs(OfGroup):
    """Rehearse a group's recovery."""

    at: Selector = Field(
        default="latest", description=DrillRequest.model_fields["at"].description or "Which checkpoint."
    )
    target: Name | None = Field(
        default=None, description="Recover from this target; None: the first that has the checkpoint."
    )
    rto: Timeout | None = Field(default=None, description="The drill fails if it takes longer.")
    timeout: Timeout = Field(
        default=Duration("1h"), description="How long to wait for the report before the update fails."
    )
