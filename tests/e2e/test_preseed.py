"""Another site has a raw copy of a volume: `dpac target preseed` there, killed in the middle, and what the leg then sends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.site import DPAC, MIB, SECONDS_MAX, LiveSite, connected, flush, write
from tests.s3_server import s3_server

pytestmark = pytest.mark.e2e
SIZE = 64 * MIB
BLOCKS = 12


class OtherSite:
    """A host without a backend and without the site's keys, with an image and the target."""

    def __init__(self, folder: Path, at: Path, options: list[str], path: list[str]) -> None:
        self.folder, self.options, self.path = folder, options, path
        self._at = at
        folder.mkdir()
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("DPAC_")}
        self.environ |= {"DPAC_CONFIG_DIR": str(folder / "config"), "COLUMNS": "200", "HOME": str(folder)}

    def command(self, *more: str) -> list[str]:
        """`dpac target preseed` of the volume."""
        image = ["--from", str(self.folder / "disk.raw"), "--kit", str(self.folder / "kit")]
        return [str(DPAC), "target", "preseed", "far", "shop/disk", *image, *self.path, *more]

    def preseed_until_killed(self) -> bool:
        """kill -9 as soon as the first pieces are at the target; False if it was done before this process had the time to."""
        with subprocess.Popen(self.command(), env=self.environ, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            first = running.stderr.readline()
            running.send_signal(signal.SIGKILL)
            assert " of 64.0 MiB" in first, first + running.stderr.read()
            return running.wait() != 0

    def preseed(self, status: int = 0) -> subprocess.CompletedProcess[str]:
        """To its end."""
        done = subprocess.run(
            self.command("--json"), env=self.environ, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def objects(self) -> dict[str, int]:
        """What lies at the target -> its size."""
        return {str(path): path.stat().st_size for path in self._at.rglob("*") if path.is_file()}


@pytest.fixture(params=["folder", "bucket"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OtherSite]:
    """With a folder that the group's host sees at another place, or with a bucket."""
    with ExitStack() as stack:
        if request.param == "folder":
            (tmp_path / "far").mkdir()
            (tmp_path / "mounted").symlink_to(tmp_path / "far")
            at, options, path = (
                tmp_path / "far",
                ["--path", str(tmp_path / "mounted")],
                ["--path", str(tmp_path / "far")],
            )
        else:
            server = stack.enter_context(s3_server(tmp_path / "s3"))
            server.make_bucket("far-copies")
            keys = ["--credentials", f"file:{server.keys_file}"]
            at, path = server.buckets / "far-copies", []
            options = ["--bucket", "far-copies", "--prefix", "ber", "--endpoint", server.endpoint, *keys]
        yield OtherSite(tmp_path / "other", at, options, path)


def test_a_leg_starts_from_what_an_array_brought(tmp_path: Path, other: OtherSite, seed: int) -> None:
    """The image is a day old; the leg sends what was written since, and checkpoints there are the volume's."""
    chance = random.Random(seed)
    with LiveSite(tmp_path / "site") as site:
        site.start()
        disk = site.folder / "disk.raw"
        content = bytearray(chance.randbytes(SIZE))
        disk.write_bytes(content)
        (other.folder / "disk.raw").write_bytes(content)
        legs = {name: {"target": name, "rpo": "1s"} for name in ("copies", "far")}
        spec: dict[str, Any] = {
            "members": {"disk": {"kind": "volume", "path": str(disk)}},
            "replication": {"copies": legs["copies"]},
            "journal": {"history": "1h", "spool_max": "512MiB"},
        }
        site.dpac("target", "add", "copies", "--path", str(site.folder / "copies"))
        site.dpac("target", "add", "far", *other.options)
        site.protect_to("shop", spec)
        with connected(site.uri("shop/disk")) as client:
            for number in chance.sample(range(SIZE // 65536), BLOCKS):
                at, data = number * 65536, chance.randbytes(4096)
                content[at : at + 4096] = data
                write(client, at, data)
            flush(client)
        site.dpac("target", "preseed-kit", "far", "shop", "--to", str(other.folder / "kit"), "--data", str(site.data))
        short = other.folder / "short.raw"
        short.write_bytes(bytes(MIB))
        refused = ["target", "preseed", "far", "shop/disk", "--from", str(short), "--data", str(site.data)]
        assert "it is another volume's, or was cut short" in site.dpac(*refused, status=2).stderr
        assert not other.objects(), "what is refused leaves nothing"

        if other.preseed_until_killed():
            done = json.loads(other.preseed().stdout)
            assert done["image_bytes"] == SIZE
            assert 0 < done["resumed_bytes"] < SIZE
            print(f"killed with {done['resumed_bytes']} bytes at the target")
        assert "an image of disk already" in other.preseed(status=4).stderr
        known = other.objects()
        site.protect_to("shop", {**spec, "replication": legs})
        site.dpac("checkpoint", "shop", "--tag", "there")
        new = sum(size for name, size in other.objects().items() if name not in known)
        print(f"{new} bytes at the target for {BLOCKS} differing blocks of 4 KiB")
        assert BLOCKS * 4096 < new <= 1.1 * BLOCKS * 65536 + MIB // 2, f"{new}, seed {seed}"
        there = site.folder / "there.raw"
        site.dpac("restore", "shop", "--member", "disk", "--at", "tag:there", "--target", "far", "--to", str(there))
        assert there.read_bytes() == content
        site.dpac("verify", "shop", "--target", "far")
        assert "has copies of the group shop already" in other.preseed(status=4).stderr
