"""What scripts rely on: JSON on standard output, pages by cursor, exit statuses, and damage that is named, never served."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dpac_api.models import Checkpoint, GroupStatus, Target
from tests.e2e.site import MIB, LiveSite, connected, contents, flush, qemu_io, until, write
from tests.nbd.client import Client

pytestmark = pytest.mark.e2e
PART = 10 * MIB
"""What is written before each checkpoint: its segment is of full size, so that no compaction joins it with others."""
SIZE = 3 * PART + 2 * MIB


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """One site with a group `shop`, whose volume `disk` was written before each of three tagged checkpoints."""
    with LiveSite(tmp_path_factory.mktemp("scripts")) as site:
        site.start()
        site.protect_volume("shop", SIZE)
        for number, tag in enumerate(("first", "second", "third")):
            with connected(site.uri("shop/disk")) as disk:
                write(disk, number * PART, part(number + 1))
                flush(disk)
            site.rest.take_checkpoint("shop", tag=tag)
            site.wait_for_checkpoint("shop", f"tag:{tag}")
        yield site


@pytest.fixture
def site(started: LiveSite) -> Iterator[LiveSite]:
    """The site, with its logs in the report of a failure."""
    yield started
    started.print_logs()


def expected(*numbers: int) -> bytes:
    """The volume after the writes before that many checkpoints."""
    return b"".join(part(number) for number in numbers).ljust(SIZE, b"\0")


def part(number: int) -> bytes:
    """What is written before a checkpoint: bytes that no compressor makes smaller."""
    return random.Random(number).randbytes(PART)


# ------------------------------------------------------------------ listings


def test_targets_are_listed_as_json(site: LiveSite) -> None:
    """`dpac target list --json` is one document of wire models, and nothing else is on standard output."""
    page = site.dpac_json("target", "list")
    assert page["next_cursor"] is None
    (target,) = [Target.model_validate_json(json.dumps(item)) for item in page["items"]]
    assert (target.name, target.spec.path, target.used_by) == ("copies", str(site.folder / "copies"), ["shop"])


def test_the_status_is_told_as_json(site: LiveSite) -> None:
    """`dpac status GROUP --json` is the wire model of the status; without a group it is a page of them."""
    status = GroupStatus.model_validate_json(site.dpac("status", "shop", "--json").stdout)
    assert status.protected
    assert status.seeded
    assert status.members["disk"].size_bytes == SIZE
    assert status.legs["copies"].seeded_fraction == 1.0
    assert [item["group"] for item in site.dpac_json("status")["items"]] == ["shop"]


def test_checkpoints_are_paged_by_cursor_without_gap_or_repeat(site: LiveSite) -> None:
    """Pages of two, followed by their cursors, are the whole timeline, newest first, while new ones come."""
    whole = site.dpac_json("checkpoints", "shop", "--limit", "1000")["items"]
    last = whole[0]
    cursor, paged = f"{int(last['id'].rpartition('-')[2]) + 1}", []
    while cursor is not None:
        page = site.dpac_json("checkpoints", "shop", "--limit", "2", "--cursor", cursor)
        assert 0 < len(page["items"]) <= 2
        paged += page["items"]
        cursor = page["next_cursor"]
    assert [item["id"] for item in paged] == [item["id"] for item in whole]
    assert len(whole) >= 3
    times = [Checkpoint.model_validate_json(json.dumps(item)).time for item in whole]
    assert times == sorted(times, reverse=True)
    tags = [tag for item in whole for tag in item["tags"]]
    assert tags == ["third", "second", "first"]
    assert all(item["targets"]["copies"]["available"] for item in whole)


def test_checkpoints_are_filtered_by_tag_and_time(site: LiveSite) -> None:
    """`--tag`, `--before` and `--after` give what they say."""
    (second,) = site.dpac_json("checkpoints", "shop", "--tag", "second")["items"]
    assert second["cuts"]["disk"]["kind"] == "exact"
    for option, newer in (("--before", False), ("--after", True)):
        found = site.dpac_json("checkpoints", "shop", option, second["time"])["items"]
        assert found
        moment = datetime.fromisoformat(second["time"])
        assert all((datetime.fromisoformat(item["time"]) > moment) == newer for item in found)
        assert second["id"] not in [item["id"] for item in found]


def test_people_see_tables_where_scripts_see_json(site: LiveSite) -> None:
    """Without --json the same commands speak to people: names and tags, no braces."""
    for command in (["target", "list"], ["status"], ["status", "shop"], ["checkpoints", "shop"], ["group", "list"]):
        told = site.dpac(*command).stdout
        assert "{" not in told
        assert re.search(r"\b(shop|copies)\b", told), told
    assert "second" in site.dpac("checkpoints", "shop", "--tag", "second").stdout


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (["frobnicate"], 2, "No such command"),
        (["status", "--nonsense"], 2, "--nonsense"),
        (["checkpoints", "shop", "--limit", "0"], 2, "--limit"),
        (["checkpoints", "shop", "--before", "yesterday"], 2, "yesterday"),
        (["checkpoints", "shop", "--cursor", "nonsense"], 2, "cursor"),
        (["checkpoint", "shop", "--tag", "no spaces"], 2, "tag"),
        (["checkpoint", "shop", "--app"], 2, "blueprint"),
        (["mount", "shop", "--at", "sometime"], 2, "latest"),
        (["restore", "shop", "--member", "disk", "--to", "/"], 2, "/"),
        (["drill", "shop", "--rto", "soon"], 2, "--rto"),
        (["group", "apply", "-f", "/nowhere/group.yaml"], 2, "/nowhere/group.yaml"),
        (["status", "nobody"], 3, "nobody"),
        (["mount", "shop", "--member", "nothing"], 2, "nothing"),
        (["mount", "shop", "--target", "elsewhere"], 3, "elsewhere"),
        (["unmount", "nothing"], 3, "nothing"),
        (["target", "delete", "copies"], 4, "shop"),
        (["mount", "shop", "--at", "tag:never"], 21, "never"),
        (["mount", "shop", "--at", "before:2001-01-01T00:00:00Z"], 21, "2001"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_a_message_and_a_status(site: LiveSite, command: list[str], status: int, says: str) -> None:
    """Each mistake ends with its status and names what is wrong on standard error, without a traceback."""
    done = site.dpac(*command, status=status)
    assert says in done.stderr
    assert done.stdout == ""


def test_a_group_file_with_a_mistake_names_the_property(site: LiveSite, tmp_path: Path) -> None:
    """What is wrong in a declaration is told by its place in it, and nothing is changed."""
    declaration = tmp_path / "bad.yaml"
    declaration.write_text("name: bad\nmembers: {disk: {kind: volume, path: relative.raw, size: 1MiB}}\n")
    assert "members.disk" in site.dpac("group", "apply", "-f", str(declaration), status=2).stderr
    declaration.write_text("name: bad\nmembers: [")
    assert str(declaration) in site.dpac("group", "apply", "-f", str(declaration), status=2).stderr
    assert [group["name"] for group in site.dpac_json("group", "list")["items"]] == ["shop"]


# ------------------------------------------------------------------ damage


class Damage:
    """One byte of an object at the target, flipped while in the `with` block."""

    def __init__(self, path: Path, at: int) -> None:
        self.path = path
        self._whole = path.read_bytes()
        self._at = at

    def __enter__(self) -> Damage:
        damaged = bytearray(self._whole)
        damaged[self._at] ^= 0x40
        self.path.write_bytes(damaged)
        return self

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self._whole)


def segment_of(site: LiveSite, tag: str) -> Path:
    """The segment at the target that holds what was written before a tagged checkpoint."""
    (checkpoint,) = site.dpac_json("checkpoints", "shop", "--tag", tag)["items"]
    (lsn,) = checkpoint["lsn"].values()
    found = []
    for path in (site.folder / "copies").rglob("s/*/*"):
        _, begin, end, _ = path.name.split("-")
        # The write ends right before the mark, or before a mark that came between.
        if int(begin, 16) <= lsn - PART and lsn - PART // 2 < int(end, 16):
            found.append(path)
    return max(found, key=lambda path: path.name)


def verify(site: LiveSite, status: int) -> dict[str, Any]:
    """`dpac verify shop`: its report."""
    report: dict[str, Any] = site.dpac_json("verify", "shop", status=status)["result"]
    return report


def sequence(checkpoint_id: str) -> int:
    """The number in `ck-EPOCH-NUMBER`."""
    return int(checkpoint_id.rpartition("-")[2])


@pytest.mark.parametrize("part", ["header", "data", "index", "footer"])
def test_a_flipped_byte_is_found_named_and_never_served(site: LiveSite, part: str) -> None:
    """`verify` ends with 20, naming the object and the checkpoints; mounts of those fail or read errors, never wrong bytes."""
    assert verify(site, 0)["findings"] == []
    ids = {tag: site.dpac_json("checkpoints", "shop", "--tag", tag)["items"][0]["id"] for tag in ("first", "second")}
    whole = site.dpac_json("checkpoints", "shop", "--limit", "1000")["items"]
    path = segment_of(site, "second")
    size = path.stat().st_size
    at = {"header": 100, "data": 256 + 10, "index": size - 64 - 40, "footer": size - 30}[part]
    with Damage(path, at):
        report = verify(site, 20)
        (finding,) = report["findings"]
        assert finding["target"] == "copies"
        assert finding["object"].endswith(path.name)
        first, last = finding["checkpoints"][0]["first"], finding["checkpoints"][-1]["last"]
        if part == "data":
            assert finding["members"][0]["member"] == "disk"
            assert finding["members"][0]["ranges"]
        assert sequence(ids["first"]) < sequence(first) <= sequence(ids["second"]) <= sequence(last)
        told = site.dpac("verify", "shop", status=20)
        assert report["checkpoints"] == len([item for item in whole if sequence(item["id"]) < sequence(first)])
        assert path.name in told.stdout
        assert f"{first} to " in told.stdout
        assert "from another target" in told.stderr
        assert_never_served(site, ids["second"], expected(1, 2))
        with site.mounted("shop", "tag:first") as mount:
            assert contents(mount.members["disk"]) == expected(1)
        to = site.folder / f"restored-{part}.raw"
        assert site.dpac("restore", "shop", "--member", "disk", "--at", "tag:second", "--to", str(to), status=None)
        assert not to.exists()
    assert verify(site, 0)["findings"] == []
    with site.mounted("shop", "tag:second") as mount:
        assert contents(mount.members["disk"]) == expected(1, 2)


def assert_never_served(site: LiveSite, selector: str, right: bytes) -> None:
    """A mount of a damaged checkpoint is refused with status 20, or gives errors where bytes are damaged."""
    site.kill("worker-0")  # it may have in its memory, sound, what is damaged now
    until(lambda: site.serves("shop/disk"), "a new worker serves")
    done = site.dpac("mount", "shop", "--at", selector, "--json", status=None)
    if done.returncode != 0:
        assert done.returncode == 20, done.stderr
        assert "cannot be read" in done.stderr, done.stderr
        assert "`dpac verify`" in done.stderr
        return
    mount = json.loads(done.stdout)
    failed = 0
    with connected(mount["members"]["disk"]) as client:
        for offset in range(0, SIZE, 65536):
            data = block_or_error(client, offset, 65536)
            failed += data is None
            assert data in (None, right[offset : offset + 65536])
    assert failed > 0
    assert "Input/output error" in qemu_io(mount["members"]["disk"], f"read 0 {SIZE}", status=None)
    site.dpac("unmount", mount["id"])


def block_or_error(client: Client, offset: int, length: int) -> bytes | None:
    """What a read gives; None for an I/O error."""
    client.read(offset, offset, length)
    reply = client.reply()
    assert reply.error in (0, 5)
    return reply.data if reply.error == 0 else None


def test_lost_and_cut_segments_and_other_damaged_objects_are_found(site: LiveSite) -> None:
    """What is gone or cut short is named like what is damaged; a changed manifest or declaration is not believed."""
    path = segment_of(site, "second")
    whole = path.read_bytes()
    try:
        for left in (None, b"", whole[:100], whole[:-1]):
            path.unlink(missing_ok=True)
            if left is not None:
                path.write_bytes(left)
            (finding,) = verify(site, 20)["findings"]
            assert finding["object"].endswith(path.name)
            # Control may have read its index before: then it knows the checkpoint, and that what it needs is lost.
            refused = site.dpac("mount", "shop", "--at", "tag:second", status=None)
            assert refused.returncode in (20, 21)
            assert path.name in refused.stderr
    finally:
        path.write_bytes(whole)
    for pattern, name in (
        ("m/*", "m/"),
        ("spec/*", "spec/"),
        ("keys/*", "keys/"),
        ("repository.json", "repository.json"),
    ):
        other = max((site.folder / "copies").rglob(pattern))
        with Damage(other, other.stat().st_size // 2):
            (finding,) = verify(site, 20)["findings"]
            assert name in finding["object"]
    assert verify(site, 0)["findings"] == []


def test_one_damaged_segment_does_not_hide_the_timeline(site: LiveSite) -> None:
    """A control process that never saw the segment whole lists the checkpoints of all others, and mounts an earlier one."""
    path = segment_of(site, "second")
    with Damage(path, path.stat().st_size - 64 - 40):  # in its index
        site.kill("control")
        items = site.dpac_json("checkpoints", "shop", "--limit", "1000")["items"]
        tags = [tag for item in items for tag in item["tags"]]
        assert "first" in tags
        assert "second" not in tags
        assert "first" in site.dpac("checkpoints", "shop").stdout
        assert path.name in site.dpac("mount", "shop", "--at", "tag:second", status=20).stderr
        with site.mounted("shop", "tag:first") as mount:
            assert contents(mount.members["disk"]) == expected(1)
    assert site.dpac_json("checkpoints", "shop", "--tag", "second")["items"]


# ------------------------------------------------------------------ a backend that is not there


def test_commands_against_a_stopped_backend_say_what_to_do(site: LiveSite) -> None:
    """Every command ends with 11 and says how to start the backend; once it runs again everything is as it was."""
    before = site.dpac_json("checkpoints", "shop", "--tag", "first")
    assert "stopped" in site.dpac("stop", "--data", str(site.data)).stdout
    with ThreadPoolExecutor() as together:  # each tries for a while, because the backend may be restarting
        commands = (["status"], ["target", "list", "--json"], ["verify", "shop"], ["checkpoint", "shop"])
        for done in together.map(lambda command: site.dpac(*command, status=11), commands):
            assert "dpac serve" in done.stderr
            assert done.stdout == ""
    again = site.dpac("stop", "--data", str(site.data))
    assert "No backend" in again.stdout
    site.start()
    assert site.dpac_json("checkpoints", "shop", "--tag", "first") == before
    until(lambda: site.rest.group_status("shop").protected, "shop is protected again")
