"""A real S3 server for tests: versitygw over a temporary folder, on a free port, with keys of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from dpac_api.models import S3TargetSpec
from dpac_engine.io.stores.s3_client import make_client
from tests.tools import require_go_tool

START_SECONDS = 20.0


class S3Server:
    """One server; `start` and `stop` as often as a test wants, always at the same address with what was stored."""

    def __init__(self, folder: Path, *, keeps_versions: bool = False) -> None:
        self.folder = folder
        self._keeps_versions = keeps_versions
        self.buckets = folder / "buckets"
        self.buckets.mkdir(parents=True)
        self.access_key = f"AK{secrets.token_hex(8).upper()}"
        self.secret_key = secrets.token_urlsafe(30)
        self.keys_file = folder / "keys"
        self.write_keys(self.access_key, self.secret_key)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._program = require_go_tool("versitygw")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def write_keys(self, access_key: str, secret_key: str) -> None:
        """What targets of this server find where `credentials` refers to, from now on."""
        text = f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
        aside = self.keys_file.with_suffix(".new")
        aside.touch(mode=0o600)
        aside.write_text(text)
        aside.replace(self.keys_file)

    def make_bucket(self, name: str, *, locks: bool = False) -> None:
        """A bucket; with Object Lock, for which the server must keep versions."""
        make_client(self.spec(name)).create_bucket(Bucket=name, ObjectLockEnabledForBucket=locks)

    def take_bucket_away(self, name: str) -> None:
        """The bucket is not there any more; `bring_bucket_back` undoes it."""
        (self.buckets / name).rename(self.folder / f"away-{name}")

    def bring_bucket_back(self, name: str) -> None:
        """As it was."""
        (self.folder / f"away-{name}").rename(self.buckets / name)

    def spec(self, bucket: str, **changes: Any) -> S3TargetSpec:
        """A target in that bucket."""
        given = {"bucket": bucket, "endpoint": self.endpoint, "credentials": f"file:{self.keys_file}", **changes}
        return S3TargetSpec.model_validate(given)

    def start(self) -> None:
        """Returns once it answers."""
        keys = {"ROOT_ACCESS_KEY_ID": self.access_key, "ROOT_SECRET_ACCESS_KEY": self.secret_key}
        log = (self.folder / "log").open("ab")
        versions = self.folder / "versions"
        versions.mkdir(exist_ok=True)
        storage = ["posix", *(["--versioning-dir", str(versions)] if self._keeps_versions else []), str(self.buckets)]
        self._process = subprocess.Popen(
            [self._program, "--port", f"127.0.0.1:{self.port}", "--quiet", "--keep-alive", *storage],
            env={"PATH": os.environ["PATH"], **keys},
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "versitygw does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def s3_server(folder: Path, *, keeps_versions: bool = False) -> Iterator[S3Server]:
    """A server that runs, and is gone afterwards with everything in it."""
    server = S3Server(folder, keeps_versions=keeps_versions)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def attack(spec: S3TargetSpec, *, hide: bool = True) -> int:
    """What whoever has the target's keys can do: delete every version that goes, overwrite every object, and delete it.

    Without `hide` the objects stay overwritten. Returns how many versions the locks kept.
    """
    client, kept = make_client(spec), 0
    pages = list(client.get_paginator("list_object_versions").paginate(Bucket=spec.bucket))
    versions = [one for page in pages for one in page.get("Versions", [])]
    for one in versions:
        try:
            client.delete_object(Bucket=spec.bucket, Key=one["Key"], VersionId=one["VersionId"])
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessDenied":
                raise
            kept += 1
    for key in sorted({one["Key"] for one in versions}):
        client.put_object(Bucket=spec.bucket, Key=key, Body=b"ransom")
        if hide:
            client.delete_object(Bucket=spec.bucket, Key=key)
    return kept
