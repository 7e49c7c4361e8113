"""The oldest versions of a bucket's objects: what was stored first, whatever was put over it or deleted since.

Where objects are locked, whoever has the writer's keys can still put newer versions and delete markers on top of them. The
oldest version of a key is the one that was locked when it was written, so that is what is read; markers do not count.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dpac_api.errors import NotFound

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectVersionsOutputTypeDef

KNOWN_MAX = 8192
"""Ids that are remembered: more than the manifests and segments that a reader goes through one after the other."""


class OldestVersions:
    """Finds them, and remembers some: the oldest version of a key changes only when its lock has ended. Safe for threads."""

    def __init__(self, bucket: str, listed: Callable[[], None] = lambda: None) -> None:
        """`listed` is told of every listing that was sent."""
        self._bucket = bucket
        self._listed = listed
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def version_of(self, client: S3Client, key: str) -> str:
        """The id of the key's oldest version; NotFound if it has none."""
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return known
        for found, version in self._walk(lambda after: self.page(client, key, after), key):
            if found == key:
                self._keep(key, version)
                return version
            break  # keys come in order, and this one is the first that can
        raise NotFound(f"{key} has no version in the bucket.")

    def forget(self, key: str) -> None:
        """It is not what it was: its lock ended, and it was deleted."""
        with self._lock:
            self._known.pop(key, None)

    def keys(self, ask: Callable[[dict[str, Any]], ListObjectVersionsOutputTypeDef], start_after: str) -> Iterator[str]:
        """Keys with a version, in order; `ask` sends one listing, of what comes after what it is given."""
        for key, version in self._walk(ask, start_after, after_key=True):
            self._keep(key, version)
            yield key

    def page(self, client: S3Client, prefix: str, after: dict[str, Any]) -> ListObjectVersionsOutputTypeDef:
        """One listing."""
        self._listed()
        return client.list_object_versions(Bucket=self._bucket, Prefix=prefix, **after)

    def _walk(
        self,
        ask: Callable[[dict[str, Any]], ListObjectVersionsOutputTypeDef],
        start: str,
        *,
        after_key: bool = False,
    ) -> Iterator[tuple[str, str]]:
        """(key, id of its oldest version). Versions of a key come newest first, and can go over several pages."""
        after: dict[str, Any] = {"KeyMarker": start} if after_key and start else {}
        current: tuple[str, str] | None = None
        while True:
            page = ask(after)
            for entry in page.get("Versions", []):
                if after_key and entry["Key"] <= start:
                    continue  # some servers list the key that the marker names, too
                if current is not None and current[0] != entry["Key"]:
                    yield current
                current = entry["Key"], entry["VersionId"]
            if not page.get("IsTruncated"):
                break
            after = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page.get("NextVersionIdMarker", "")}
        if current is not None:
            yield current

    def _keep(self, key: str, version: str) -> None:
        with self._lock:
            self._known[key] = version
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
