"""examples/s3, by the real CLI and against a real S3 server: what was sold is in the bucket, the keys are nowhere else."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pulumi.automation as auto
import pytest

from setup import checkout
from tests.e2e.site import until
from tests.pulumi.conftest import Backend
from tests.s3_server import S3Server, s3_server
from tests.stack import Stack
from tests.tools import pulumi_environment

pytestmark = pytest.mark.pulumi

EXAMPLE = checkout.ROOT / "examples" / "s3"
ORDERS = checkout.QUICKSTART / "orders.py"
BUCKET = "shop-copies"
PREFIX = "sites/here"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server with an empty bucket."""
    with s3_server(tmp_path / "s3") as running:
        running.make_bucket(BUCKET)
        yield running


@pytest.fixture
def stack(tmp_path: Path, another_backend: Backend, server: S3Server) -> Iterator[Stack]:
    """The example's own program, configured as its README says."""
    project = tmp_path / "program"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__"))
    (tmp_path / "data" / "orders").mkdir(parents=True)
    made = Stack(project, {**pulumi_environment(tmp_path / "pulumi"), **another_backend.variables}, project=None)
    settings = {
        "data": str(tmp_path / "data"),
        "bucket": BUCKET,
        "prefix": PREFIX,
        "endpoint": server.endpoint,
        "credentials": f"file:{server.keys_file}",
    }
    for name, value in settings.items():
        made.configure(name, value)
    yield made
    made.destroy()


@contextmanager
def selling(database: Path, acknowledged: Path) -> Iterator[None]:
    """The application takes orders."""
    command = [sys.executable, ORDERS, "run", "--database", database, "--acknowledged", acknowledged]
    with subprocess.Popen([*command, "--per-second", "50"]) as shop:
        try:
            until(lambda: acknowledged.exists() and acknowledged.read_bytes().count(b"\n") > 20, "orders are taken")
            yield
        finally:
            shop.send_signal(signal.SIGTERM)


def test_orders_come_back_from_the_bucket(
    stack: Stack, server: S3Server, another_backend: Backend, tmp_path: Path
) -> None:
    """Up protects and rehearses from the bucket; a second up is empty; a restore has every acknowledged order."""
    acknowledged, restored = tmp_path / "acknowledged", tmp_path / "restored"
    with selling(tmp_path / "data" / "orders" / "orders.db", acknowledged):
        outputs = stack.up().outputs
        assert outputs["rehearsed_from"].value == "bucket"
        assert list((server.buckets / BUCKET / PREFIX).rglob("m/*")), "the bucket holds manifests below the prefix"
        stack.up(expect_no_changes=True)
        assert "ok" in another_backend.dpac("target", "check", "bucket")
        told = acknowledged.read_text().splitlines()[-1].split()[1]
        another_backend.dpac("checkpoint", "shop-s3", "--app", "--tag", "proof")
        another_backend.dpac("restore", "shop-s3", "--member", "orders", "--at", "tag:proof", "--to", str(restored))
    check = [sys.executable, ORDERS, "check", restored / "orders.db", "--acknowledged", acknowledged, "--by", told]
    proven = subprocess.run(check, capture_output=True, text=True, check=False)
    assert proven.returncode == 0, proven.stdout
    assert "whole, nothing missing" in proven.stdout

    stack.configure("escrow[0]", escrow_key(another_backend, tmp_path / "escrow"))
    steps = stack.preview()
    del steps["default"]  # Pulumi's provider of dynamic resources is given all of the stack's configuration
    assert {name: step.operation for name, step in steps.items()} == {"shop-s3-group": "update"}
    stack.up()

    everything = stack.exported(show_secrets=True)
    kept = [file for file in (tmp_path / "pulumi").rglob("*") if file.is_file()]
    for secret in (server.secret_key, server.access_key, another_backend.endpoint.token_file.read_text().strip()):
        assert secret not in everything
        assert not [file for file in kept if secret.encode() in file.read_bytes()]

    stored = sorted((server.buckets / BUCKET).rglob("*"))
    stack.destroy()
    assert [path for path in stored if path.is_file() and "/m/" in str(path) and path.exists()], "copies stay"


def escrow_key(backend: Backend, file: Path) -> str:
    """The public half of a new escrow key."""
    return next(
        word for word in backend.dpac("key", "generate-escrow", "--to", str(file)).split() if "dpac-escrow" in word
    )


def test_a_bucket_that_is_not_there_is_told_by_up(stack: Stack, server: S3Server) -> None:
    """As a message that names the bucket, without a traceback and without a key."""
    stack.configure("bucket", "no-such-bucket")
    stack.configure("timeout", "5s")
    with pytest.raises(auto.CommandError) as caught:
        stack.up()
    said = str(caught.value)
    assert "s3://no-such-bucket/" in said
    assert "there is no such bucket. Create it" in said
    assert "Traceback" not in said
    assert server.secret_key not in said
