"""A botocore client of one target: where its keys come from, how long it waits, whom it trusts."""

from __future__ import annotations

import configparser
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ProfileNotFound
from botocore.loaders import create_loader

from dpac_api.errors import Denied
from dpac_api.models import S3TargetSpec

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
"""How long nothing may arrive."""
CONNECTIONS_MAX = 16
_FILE_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_LOADER = create_loader()
_MAKING = threading.Lock()
"""Service descriptions are read once a process (half a second); making clients is not for threads."""


def make_client(spec: S3TargetSpec) -> S3Client:
    """A client, for any threads. Denied if `credentials` refers to nothing."""
    with _MAKING:
        session = botocore.session.Session()
        session.register_component("data_loader", _LOADER)
        keys = _keys(spec.credentials)
        try:
            made = boto3.Session(botocore_session=session, region_name=spec.region, **keys)
            return made.client(
                "s3",
                endpoint_url=spec.endpoint,
                region_name=made.region_name or "us-east-1",
                verify=spec.ca_file,
                config=_config(spec),
            )
        except ProfileNotFound:
            profile = spec.credentials.partition(":")[2]
            raise Denied(
                f"The AWS configuration of the backend's host has no profile {profile!r}. Add it, or correct `credentials`."
            ) from None


def _config(spec: S3TargetSpec) -> Config:
    path_style = spec.endpoint is not None if spec.path_style is None else spec.path_style
    return Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS_MAX,
        retries={"total_max_attempts": 1, "mode": "standard"},  # retries are a wrapper (`retrying.py`)
        tcp_keepalive=True,
        proxies={"http": spec.proxy, "https": spec.proxy} if spec.proxy else None,
        s3={"addressing_style": "path" if path_style else "virtual"},
        # Checksums are given with each request; trailers, which many servers do not know, are not needed.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported",  # of whole objects; whatever the host's AWS configuration says
        user_agent_extra="dpac",
    )


def _keys(reference: str) -> dict[str, Any]:
    """What a session is made with, for what `credentials` says."""
    kind, _, value = reference.partition(":")
    match kind:
        case "environment":
            return _from_environment(value)
        case "profile":
            return {"profile_name": value}
        case "file":
            return _from_file(Path(value))
        case _:
            return {}


def _from_environment(prefix: str) -> dict[str, Any]:
    keys = {name: os.environ.get(f"{prefix}_{name.removeprefix('aws_').upper()}") for name in _FILE_KEYS}
    return _whole(keys, f"the backend's environment ({prefix}_ACCESS_KEY_ID and {prefix}_SECRET_ACCESS_KEY)")


def _from_file(path: Path) -> dict[str, Any]:
    """From a file like ~/.aws/credentials: its section `default`, or its only one."""
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Denied(
            f"The credentials in {path} cannot be read: {reason}. Put them there, for the backend's user."
        ) from None
    if mode & 0o027:
        raise Denied(f"Others can read or change the credentials in {path}. Run `chmod 600 {path}`.")
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # The parser's own message repeats the line.
        raise Denied(
            f"{path} is no credentials file: {type(error).__name__}. Write it like ~/.aws/credentials."
        ) from None
    sections = parser.sections()
    name = "default" if "default" in sections else sections[0] if len(sections) == 1 else None
    if name is None:
        raise Denied(f"{path} has no section [default]. Write it like ~/.aws/credentials.")
    return _whole({key: parser.get(name, key, fallback=None) for key in _FILE_KEYS}, f"{path}, section [{name}]")


def _whole(keys: dict[str, str | None], where: str) -> dict[str, Any]:
    if not keys["aws_access_key_id"] or not keys["aws_secret_access_key"]:
        raise Denied(f"There is no access key with its secret key in {where}. Put both there.")
    return {name: value for name, value in keys.items() if value}
