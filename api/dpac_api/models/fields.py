"""The kinds of field that models are made of: names, selectors, paths, bounded quantities."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dpac_api.quantities import Duration, Size


class Model(BaseModel):
    """Base of every wire model: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, ser_json_bytes="base64")


SECTOR_BYTES = 512

Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Lower-case letters, digits and dashes, 1 to 63 of them, starting and ending with a letter or digit.",
    ),
]


Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="A checkpoint's tag.")]
LabelKey = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$",
        description="Letters, digits, dots, dashes, underscores and slashes, 1 to 63 of them, starting and ending with a letter or digit.",
    ),
]
LabelValue = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?)?$",
        description="Empty, or letters, digits, dots, dashes, underscores and slashes, at most 63 of them, starting and ending with a letter or digit.",
    ),
]
Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="128 random bits in lower-case hexadecimal.")]
RequestId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._-]{8,64}$", description="Made by the client; a retry with the same id never acts twice."
    ),
]


Selector = Annotated[
    str,
    Field(
        pattern=r"^(latest|latest-clean|latest-app|tag:[A-Za-z0-9][A-Za-z0-9._-]{0,62}|before:.{1,40}|ck-[0-9]+-[0-9]+)$",
        description="latest, latest-clean, latest-app, tag:NAME, before:TIMESTAMP (RFC 3339), or a checkpoint's id.",
    ),
]


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\x00" in path or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} must be an absolute path on the backend's host without '..'")
    return str(PurePosixPath(path))


AbsolutePath = Annotated[
    str,
    Field(min_length=2, max_length=1024, description="An absolute path on the backend's host."),
    AfterValidator(_absolute),
]


def bounded(low: str, high: str) -> AfterValidator:
    def check(value: Duration) -> Duration:
        if not Duration.parse(low).seconds <= value.seconds <= Duration.parse(high).seconds:
            raise ValueError(f"{value} is out of bounds; it may be from {low} to {high}")
        return value

    return AfterValidator(check)


def at_least(low: str) -> AfterValidator:
    def check(value: Size) -> Size:
        if value.bytes < Size.parse(low).bytes:
            raise ValueError(f"{value} is too small; it must be at least {low}")
        return value

    return AfterValidator(check)


def whole_sectors(value: Size) -> Size:
    if value.bytes % SECTOR_BYTES:
        raise ValueError(f"{value} is not a multiple of {SECTOR_BYTES} bytes; use a whole number of KiB")
    return value


class Owner(Model):
    """Whose declaration a resource is: a label, not an access right."""

    organization: str = Field(default="organization", max_length=200)
    project: str = Field(max_length=200)
    stack: str = Field(max_length=200)

    def __str__(self) -> str:
        return f"{self.organization}/{self.project}/{self.stack}"
