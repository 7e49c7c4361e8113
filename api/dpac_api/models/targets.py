"""Targets: where copies go."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, TypeAdapter

from dpac_api.models.fields import AbsolutePath, Model, Name, Owner, RequestId, Uid


class FilesystemTargetSpec(Model):
    """A directory on a file system of the backend's host: another disk or a network mount."""

    kind: Literal["filesystem"] = "filesystem"
    path: AbsolutePath = Field(description="The directory; created if its parent exists.")
    offsite: bool = Field(default=False, description="It lies at another place than the site, such as a remote mount.")

    @property
    def location(self) -> str:
        """Where it is, for people."""
        return self.path


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("it must be an address such as https://s3.example.com or http://host:9000")
    if "@" in parts.netloc:
        raise ValueError("an address may not hold a user name or password; it would lie in state and logs")
    return url.rstrip("/")


_CREDENTIALS = re.compile(
    r"default|environment:[A-Za-z_][A-Za-z0-9_]*|profile:[A-Za-z0-9._@ -]{1,128}|file:(/[^/\x00]+)+"
)


def _credentials(reference: str) -> str:
    # The value is not repeated: somebody may have put a key where a reference belongs.
    if not _CREDENTIALS.fullmatch(reference):
        raise ValueError(
            "it must say where the backend's host has the keys: default, environment:PREFIX, profile:NAME or "
            "file:/absolute/path, never the keys themselves"
        )
    return reference


Address = Annotated[str, Field(max_length=512), AfterValidator(_address)]
Credentials = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_credentials)]
S3StorageClass = Literal[
    "STANDARD", "INTELLIGENT_TIERING", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "REDUCED_REDUNDANCY"
]
"""Those that can be read at once: a copy that must be thawed first is none that recovers in time."""


Price = Annotated[float | None, Field(default=None, ge=0, le=1_000_000)]


class S3Prices(Model):
    """What a bucket is billed by; what is left out is Amazon's list price, or nothing where an endpoint is given."""

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="Of all of them, such as EUR.")
    storage_gib_month: Price = Field(default=None, description="A GiB kept for a month.")
    write_1000: Price = Field(default=None, description="A thousand puts or listings.")
    read_1000: Price = Field(default=None, description="A thousand reads.")
    retrieval_gib: Price = Field(default=None, description="A GiB read from a class for what is read rarely.")
    egress_gib: Price = Field(
        default=None, description="A GiB that leaves the bucket's region; 0 if the backend is in it."
    )

    def over(self, others: S3Prices) -> S3Prices:
        """These, and the others' where these say nothing."""
        return others.model_copy(update=self.model_dump(exclude_none=True))


class S3TargetSpec(Model):
    """A bucket of Amazon S3 or of a server that speaks its protocol."""

    kind: Literal["s3"] = "s3"
    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
        description="The bucket: lower-case letters, digits, dots and dashes, 3 to 63 of them. It must exist.",
    )
    prefix: str = Field(
        default="",
        max_length=200,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$",
        description="Every key begins with it: parts of letters, digits, '.', '_' and '-', joined by '/', none at its ends.",
    )
    region: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]{1,64}$",
        description="The bucket's region, such as eu-central-1; None: as the host's AWS configuration says, or us-east-1.",
    )
    endpoint: Address | None = Field(
        default=None, description="Address of the server; None: Amazon S3 in the bucket's region."
    )
    storage_class: S3StorageClass = Field(
        default="STANDARD", description="Of objects of 128 KiB and more; smaller ones are always STANDARD."
    )
    path_style: bool | None = Field(
        default=None,
        description="Address the bucket as a path (true) or as a host name (false); None: a path where an endpoint is given.",
    )
    credentials: Credentials = Field(
        default="default",
        description="Where the backend's host has the keys: default (the SDK's own chain), environment:PREFIX "
        "(PREFIX_ACCESS_KEY_ID and PREFIX_SECRET_ACCESS_KEY), profile:NAME, or file:/absolute/path.",
    )
    ca_file: AbsolutePath | None = Field(
        default=None, description="Certificates, PEM, on the backend's host that the server's must be signed by."
    )
    proxy: Address | None = Field(
        default=None, description="Address of an HTTP proxy; None: as the backend's environment says."
    )
    offsite: bool = Field(default=True, description="It lies at another place than the site.")
    object_lock: Literal["compliance", "governance"] | None = Field(
        default=None,
        description="The bucket was created with S3 Object Lock: legs may ask for `immutable_for`, and whoever reads takes the "
        "oldest version of each object. compliance: nobody ends a lock; governance: who may bypass it can. None: no locks.",
    )
    prices: S3Prices | None = Field(
        default=None, description="For the estimate of its monthly cost; None: Amazon's list prices."
    )

    @property
    def location(self) -> str:
        """Where it is, for people."""
        where = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return f"{where} at {self.endpoint}" if self.endpoint else where


TargetSpec = Annotated[FilesystemTargetSpec | S3TargetSpec, Field(discriminator="kind")]

_SPEC: TypeAdapter[TargetSpec] = TypeAdapter(TargetSpec)


def target_spec_of(stored: Any) -> TargetSpec:
    """The spec in what a catalogue or a file holds, by its `kind`."""
    return _SPEC.validate_python(stored)


class PutTarget(Model):
    """Create or change a target."""

    request_id: RequestId
    owner: Owner | None = Field(default=None, description="None from the CLI.")
    adopt: bool = Field(default=False, description="Take it over from another owner.")
    spec: TargetSpec


class Target(Model):
    """A target as the catalogue has it."""

    name: Name
    uid: Uid
    site_uid: Uid
    owner: Owner | None
    spec: TargetSpec
    generation: int
    used_by: list[str] = Field(default=[], description="Groups with a leg to it.")


class TargetTraffic(Model):
    """What was asked of a target since a moment: that of a process's start, mostly."""

    since: datetime
    write_requests: int = Field(default=0, description="Puts, creates, and parts of large ones.")
    read_requests: int = 0
    list_requests: int = 0
    delete_requests: int = 0
    failed_requests: int = Field(default=0, description="Of all of them; those that found nothing are none.")
    sent_bytes: int = 0
    received_bytes: int = 0

    def plus(self, other: TargetTraffic) -> TargetTraffic:
        """Both together, since the older moment."""
        names = set(TargetTraffic.model_fields) - {"since"}
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return TargetTraffic(since=min(self.since, other.since), **sums)


class MonthlyCost(Model):
    """An estimate: storage as it is now, requests and egress as they were since the processes started."""

    currency: str
    storage: float
    requests: float
    egress: float = Field(description="What leaves the bucket, retrieval included.")
    total: float


class TargetUsage(Model):
    """What a target holds, and how it is used."""

    target: Name
    stored_bytes: int = Field(description="By the active groups that replicate to it.")
    traffic: TargetTraffic
    monthly_cost: MonthlyCost | None = Field(
        description="None for a file system, and for a server of one's own without `prices`."
    )


class TargetCheck(Model):
    """What probing a target found."""

    target: str
    ok: bool
    checks: dict[str, str] = Field(description="Probe -> `ok`, or what is wrong and what to do.")
