"""The S3 store: objects in a bucket of Amazon S3, or of a server that keeps its contract.

Creates are conditional writes (`If-None-Match: *`), so that a bucket itself keeps a stale primary out. What is large
goes and comes in parts, several at once. Each put carries a SHA-256 that the server checks; each whole object is
checked when it is read, and parts of one by who reads them (segments are authenticated block by block).

Of a bucket whose objects are locked (`object_lock`), the oldest version of each is read (`s3_versions.py`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError

from dpac_api.errors import Conflict, Denied, DpacError, NotFound
from dpac_api.models import S3TargetSpec
from dpac_engine.io.stores.s3_client import make_client
from dpac_engine.io.stores.s3_errors import is_out_of_range, mapped
from dpac_engine.io.stores.s3_versions import OldestVersions

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import ObjectLockModeType
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 16 << 20
LARGE_BYTES = 32 << 20
"""What is larger goes in parts."""
PARTS_AT_ONCE = 4
CLASS_BYTES_MIN = 128 << 10
"""The classes for what is read rarely bill smaller objects as if they had this size."""
SKEW_SECONDS_MAX = 60.0

Answer = TypeVar("Answer")


class S3Store:
    """A bucket. Safe for threads. Credentials are read when it is first used, and again after they were refused."""

    def __init__(
        self,
        spec: S3TargetSpec,
        *,
        locked_for: timedelta | None = None,
        listed: Callable[[], None] = lambda: None,
    ) -> None:
        """`locked_for`: what is written is locked from then on for so long; only where the spec says `object_lock`.

        `listed` is told of every listing of versions, which no call of a store asks for.
        """
        self._spec = spec
        self._locked_for = locked_for
        self._oldest = OldestVersions(spec.bucket, listed) if spec.object_lock else None
        self._where = spec.location
        self._lock = threading.Lock()
        self._made: S3Client | None = None

    @staticmethod
    def request_count(size_bytes: int) -> int:
        """Requests that moving an object takes: one, or one a part with some around them."""
        return 1 if size_bytes <= LARGE_BYTES else -(-size_bytes // PART_BYTES) + 2

    # ------------------------------------------------------------------ the store

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        self._write(key, data, {})

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        self._write(key, data, {"IfNoneMatch": "*"})

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        if length is not None and length > LARGE_BYTES:
            end = min(offset + length, self.size(key))
            return self._get_parts(key, offset, end)
        if length == 0:
            self.size(key)  # NotFound if it is missing
            return b""
        return self._read(key, lambda client, which: self._get(client, which, offset, length))

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        try:
            return self._read(key, lambda client, which: client.head_object(**which)["ContentLength"])
        except NotFound:
            self._look()  # an answer to HEAD has no words: is it the key that is missing, or the bucket?
            raise

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        if self._oldest is None:
            yield from self.visible(prefix, start_after)
            return
        oldest, what = self._oldest, f"list {prefix}*"
        yield from oldest.keys(
            lambda after: self._do(what, lambda client: oldest.page(client, prefix, after)), start_after
        )

    def visible(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Keys whose newest version is no delete marker, in order."""
        after: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while True:
            # Each page is a request of its own kind, so that a broken one is asked for again from where it began.
            page = self._do(f"list {prefix}*", lambda client, after=after: self._page(client, prefix, after))  # type: ignore[misc]
            yield from (entry["Key"] for entry in page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        with contextlib.suppress(NotFound):
            self._do(f"delete {key}", lambda client: client.delete_object(Bucket=self._spec.bucket, Key=key))

    # ------------------------------------------------------------------ what a check asks beside

    def examine(self) -> dict[str, str]:
        """What can be said without writing: probe -> `ok`, or what is wrong and what to do. Ends at the first fault."""
        found: dict[str, str] = {}
        try:
            self._client()
            found["credentials"] = "ok"
            date = self._look()
        except DpacError as error:
            probe = "credentials" if isinstance(error, Denied) else "reach"
            return {**found, probe: error.message}
        skew_seconds = abs((datetime.now(UTC) - date).total_seconds()) if date else 0.0
        clock = "ok"
        if skew_seconds > SKEW_SECONDS_MAX:
            clock = (
                f"This host's clock and the server's differ by {skew_seconds:.0f} s; S3 refuses requests from 15 minutes on. "
                "Set this host's clock (NTP)."
            )
        found |= {"reach": "ok", "bucket": "ok", "clock": clock}
        if self._spec.object_lock is None:
            return found
        try:
            return {**found, "object-lock": self.lock_fault() or "ok"}
        except DpacError as error:
            return {**found, "object-lock": error.message}

    def _look(self) -> datetime | None:
        """The server's time; raises what hinders a listing: a missing bucket, refused credentials."""
        place = f"{self._spec.prefix}/" if self._spec.prefix else ""
        answer = self._do("list the bucket", lambda client: self._page(client, place, {"MaxKeys": 1}))
        try:
            date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError):
            return None  # a server that says no time, or not in HTTP's words
        return date if date.tzinfo else date.replace(tzinfo=UTC)

    # ------------------------------------------------------------------ locked objects

    @property
    def spec(self) -> S3TargetSpec:
        """Where it is."""
        return self._spec

    @property
    def lock_mode(self) -> ObjectLockModeType:
        """How objects are locked: as the spec says."""
        return "GOVERNANCE" if self._spec.object_lock == "governance" else "COMPLIANCE"

    def lock_fault(self) -> str:
        """Why the bucket cannot lock objects, and what to do; empty if it can."""
        bucket, remedy = self._spec.bucket, "Use a bucket that was created with Object Lock (docs/s3.md)."

        def lockable(client: S3Client) -> bool:
            try:
                answer = client.get_object_lock_configuration(Bucket=bucket)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "ObjectLockConfigurationNotFoundError":
                    return False
                raise
            return answer["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled"

        if not self._do("ask whether objects can be locked", lockable):
            return f"The bucket {bucket!r} cannot lock objects. {remedy}"
        versioning = self._do("ask for versioning", lambda client: client.get_bucket_versioning(Bucket=bucket))
        if versioning.get("Status") != "Enabled":
            return f"The bucket {bucket!r} keeps no versions, so that its objects cannot be locked. {remedy}"
        return ""

    def on_oldest(self, key: str, what: str, ask: Callable[[S3Client, str], Answer]) -> Answer:
        """Do `what` with the oldest version of a key; NotFound if it has none."""
        assert self._oldest is not None, "objects are locked only where the spec says object_lock"
        oldest = self._oldest
        try:
            return self._do(what, lambda client: ask(client, oldest.version_of(client, key)))
        except NotFound:
            oldest.forget(key)  # perhaps it was an outdated id: its lock ended, and it went
            return self._do(what, lambda client: ask(client, oldest.version_of(client, key)))

    # ------------------------------------------------------------------ requests

    def _read(self, key: str, ask: Callable[[S3Client, dict[str, Any]], Answer]) -> Answer:
        """Ask for an object, the oldest version of it where they are locked: `ask` is given which one."""
        which: dict[str, Any] = {"Bucket": self._spec.bucket, "Key": key}
        if self._oldest is None:
            return self._do(f"read {key}", lambda client: ask(client, which))
        return self.on_oldest(key, f"read {key}", lambda client, version: ask(client, {**which, "VersionId": version}))

    def _do(self, what: str, ask: Callable[[S3Client], Answer]) -> Answer:
        try:
            with mapped(what, self._where):
                return ask(self._client())
        except Denied:
            with self._lock:
                self._made = None  # what `credentials` refers to may have changed: read it again at the next use
            raise

    def _client(self) -> S3Client:
        with self._lock:
            if self._made is None:
                self._made = make_client(self._spec)
            return self._made

    def _page(self, client: S3Client, prefix: str, more: dict[str, Any]) -> Any:
        return client.list_objects_v2(Bucket=self._spec.bucket, Prefix=prefix, **more)

    def _get(self, client: S3Client, which: dict[str, Any], offset: int, length: int | None) -> bytes:
        end = "" if length is None else str(offset + length - 1)
        asked: dict[str, Any] = {} if offset == 0 and length is None else {"Range": f"bytes={offset}-{end}"}
        try:
            answer = client.get_object(**which, **asked)
        except ClientError as error:
            if is_out_of_range(error):
                return b""
            raise
        with contextlib.closing(answer["Body"]) as body:
            if answer["ContentLength"] <= LARGE_BYTES:
                return body.read()
        return self._get_parts(which["Key"], offset, offset + answer["ContentLength"], answer["ETag"])

    def _get_parts(self, key: str, offset: int, end: int, etag: str | None = None) -> bytes:
        same: dict[str, Any] = {"IfMatch": etag} if etag else {}  # all parts of one version

        def part(at: int) -> bytes:
            last = min(at + PART_BYTES, end) - 1
            return self._read(
                key,
                lambda client, which: client.get_object(**which, Range=f"bytes={at}-{last}", **same)["Body"].read(),
            )

        with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="s3-get") as pool:
            return b"".join(pool.map(part, range(offset, end, PART_BYTES)))

    def _write(self, key: str, data: bytes | memoryview, condition: dict[str, Any]) -> None:
        size_bytes = len(data)
        kept: dict[str, Any] = {"StorageClass": self._spec.storage_class} if size_bytes >= CLASS_BYTES_MIN else {}
        if self._locked_for is not None:
            until = datetime.now(UTC) + self._locked_for
            kept |= {"ObjectLockMode": self.lock_mode, "ObjectLockRetainUntilDate": until}
        if size_bytes > LARGE_BYTES:
            version = self._write_parts(key, memoryview(data), kept, condition)
        else:
            body = bytes(data)
            version = self._do(
                f"write {key}",
                lambda client: client.put_object(
                    Bucket=self._spec.bucket, Key=key, Body=body, ChecksumSHA256=_sha256(body), **kept, **condition
                ),
            ).get("VersionId")
        if condition and self._oldest is not None:
            self._check_first(key, version)

    def _check_first(self, key: str, version: str | None) -> None:
        """Conflict if a create came second: a key under a delete marker counts as free, but what is read is what lies below."""
        if self.on_oldest(key, f"read {key}", lambda _, oldest: oldest) != version:
            raise Conflict(f"Cannot write {key} at {self._where}: the object existed already, and was deleted.")

    def _write_parts(self, key: str, data: memoryview, kept: dict[str, Any], condition: dict[str, Any]) -> str | None:
        """The version's id, where the bucket has any."""
        at: dict[str, Any] = {"Bucket": self._spec.bucket, "Key": key}
        what = f"write {key}"
        begun = self._do(what, lambda client: client.create_multipart_upload(**at, ChecksumAlgorithm="SHA256", **kept))
        at["UploadId"] = begun["UploadId"]

        def send(number: int) -> CompletedPartTypeDef:
            body = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
            sent = self._do(
                what,
                lambda client: client.upload_part(**at, PartNumber=number, Body=body, ChecksumSHA256=_sha256(body)),
            )
            return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": _sha256(body)}

        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="s3-put") as pool:
                parts = list(pool.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))
            done = self._do(
                what,
                lambda client: client.complete_multipart_upload(**at, MultipartUpload={"Parts": parts}, **condition),
            )
            return done.get("VersionId")
        except BaseException:
            with contextlib.suppress(DpacError):  # else the bucket's own rule collects it (docs/s3.md)
                self._do(what, lambda client: client.abort_multipart_upload(**at))
            raise


def _sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
