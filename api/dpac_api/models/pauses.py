"""Orders to legs: pause, resume, resync; and how a paused one is seen."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from dpac_api.models.fields import Model, Name, RequestId

_LEG = "The leg's name; None: every leg of the group."


class PauseRequest(Model):
    """Send nothing to a leg's target until it is resumed."""

    request_id: RequestId
    leg: Name | None = Field(default=None, description=_LEG)
    reason: str = Field(default="", max_length=500, description="Why, for whoever finds it later.")
    stop_writes: bool = Field(
        default=False,
        description="Do it although the application waits from then on: a sync leg with `on_loss=stop` is among them.",
    )


class ResumeRequest(Model):
    """Catch up with a leg's target, and go on."""

    request_id: RequestId
    leg: Name | None = Field(default=None, description=_LEG)


class ResyncRequest(Model):
    """Compare every member with what a leg's target holds of it, and send what differs."""

    request_id: RequestId
    leg: Name | None = Field(default=None, description=_LEG)
    full: bool = Field(default=False, description="Send everything, whatever the target holds.")


class PauseStatus(Model):
    """That a leg is paused."""

    since: datetime
    by: str = Field(description="The name of the token that asked; `admin` for the site's own.")
    reason: str = ""
