"""Locks on the objects of a bucket (S3 Object Lock): until when nobody can destroy them, and how that is put off."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from dpac_api.errors import NotFound, Unsupported
from dpac_engine.io.stores.counting import Meter
from dpac_engine.io.stores.s3 import S3Store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_NO_LOCK = ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError")


class S3Locks:
    """The locks of the objects under `prefix` (`core.ports.ObjectLocks`), of their oldest versions. Safe for threads."""

    def __init__(self, bucket: S3Store, prefix: str, meter: Meter) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._meter = meter

    def prove(self) -> None:
        """See `core.ports.ObjectLocks.prove`."""
        self._meter.add(read_requests=2)
        fault = self._bucket.lock_fault()
        if fault:
            raise Unsupported(f"{fault} Nothing is shipped there, since `immutable_for` could not be kept.")

    def end_ns(self, key: str) -> int:
        """See `core.ports.ObjectLocks.end_ns`."""
        self._meter.add(read_requests=1)
        name = self._prefix + key

        def end(client: S3Client, version: str) -> datetime | None:
            try:
                answer = client.get_object_retention(Bucket=self._bucket.spec.bucket, Key=name, VersionId=version)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _NO_LOCK:
                    return None
                raise
            return answer["Retention"].get("RetainUntilDate")

        until = self._bucket.on_oldest(name, f"read the lock of {name}", end)
        return int(until.timestamp() * 1e9) if until else 0

    def extend(self, key: str, until_ns: int) -> None:
        """See `core.ports.ObjectLocks.extend`."""
        self._meter.add(write_requests=1)
        name, mode = self._prefix + key, self._bucket.lock_mode
        until = datetime.fromtimestamp(until_ns / 1e9, UTC)

        def extend(client: S3Client, version: str) -> None:
            client.put_object_retention(
                Bucket=self._bucket.spec.bucket,
                Key=name,
                VersionId=version,
                Retention={"Mode": mode, "RetainUntilDate": until},
            )

        self._bucket.on_oldest(name, f"lock {name} until {until:%Y-%m-%d %H:%M}Z", extend)

    def visible(self, prefix: str) -> Iterator[str]:
        """See `core.ports.ObjectLocks.visible`."""
        self._meter.add(list_requests=1)
        for key in self._bucket.visible(self._prefix + prefix):
            yield key[len(self._prefix) :]

    def latest_end_ns(self) -> int:
        """About when the last lock ends of a group's repository; 0 if none is locked.

        That of `repository.json`, which is extended as long as the group is protected, and of the newest manifest.
        """
        latest = 0
        for key in ("repository.json", *list(self.visible("m/"))[-1:]):
            try:
                latest = max(latest, self.end_ns(key))
            except NotFound:
                continue  # nothing lies there, or it was stored and purged before
        return latest
