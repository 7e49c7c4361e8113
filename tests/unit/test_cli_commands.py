"""The command line against a real REST server over a site in memory: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn

from dpac_api.models import CheckpointRange
from dpac_engine.control.cli import main
from dpac_engine.control.commands.session import duration, page_of, size
from dpac_engine.control.commands.timeline_drawing import draw, gaps
from dpac_engine.control.rest import create_app
from dpac_engine.control.site import Site
from dpac_engine.core.damage import Finding, LostPart, Run
from dpac_engine.core.entries import Entry, EntryType, encode_entry
from tests.unit.control_fakes import FakeRepository, World

START_SECONDS = 20.0


class Shell:
    """Runs commands and keeps what they printed."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self.capsys = capsys
        self.error = ""

    def run(self, *arguments: str, status: int = 0) -> str:
        """Standard output of a command that ends with that status."""
        self.capsys.readouterr()
        ended = main(list(arguments))
        printed = self.capsys.readouterr()
        self.error = printed.err
        assert ended == status, (arguments, ended, printed)
        assert "Traceback" not in printed.err
        return printed.out

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status))

    def declare(self) -> FakeRepository:
        """The target `copies`, the group `shop`, and five checkpoints."""
        self.run("target", "add", "copies", "--path", str(self.world.root / "copies"))
        file = self.world.root / "shop.json"
        file.write_text(json.dumps({"name": "shop", **self.world.group_spec()}))
        self.run("group", "apply", "-f", str(file))
        return self.world.fill_repository()


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    world = World(tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(world.deps()), log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    monkeypatch.setenv("DPAC_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setenv("DPAC_TOKEN_FILE", str(world.data / "tokens" / "admin"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield Shell(world, capsys)
    server.should_exit = True
    thread.join(START_SECONDS)
    listener.close()
    monkeypatch.undo()
    time.tzset()


# ------------------------------------------------------------------ declaring


def test_a_group_is_applied_from_yaml_shown_and_applied_again_from_what_was_shown(shell: Shell) -> None:
    """What `show` prints is what `apply` takes."""
    shell.declare()
    shown = shell.run("group", "show", "shop")
    file = shell.world.root / "again.yaml"
    file.write_text(shown[shown.index("name:") :])
    assert "generation 1" in shell.run("group", "apply", "-f", str(file))
    as_json = shell.world.root / "as.json"
    as_json.write_text(json.dumps(shell.json("group", "show", "shop")))
    assert "generation 1" in shell.run("group", "apply", "-f", str(as_json))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("members: {}", "name"),
        ("name: shop\nmembers: {d: {kind: volume, path: /x, size: huge}}", "members.d.size"),
        ("name: [", "neither YAML nor JSON"),
    ],
)
def test_a_mistake_in_a_group_file_is_told_by_its_property(shell: Shell, text: str, says: str) -> None:
    """Before anything is sent."""
    file = shell.world.root / "bad.yaml"
    file.write_text(text)
    shell.run("group", "apply", "-f", str(file), status=2)
    assert says in shell.error


def test_a_deleted_group_is_listed_as_retained(shell: Shell) -> None:
    """And its recovery points are still mountable and listable."""
    shell.declare()
    assert "are kept" in shell.run("group", "delete", "shop")
    assert shell.json("group", "list")["items"] == []
    assert shell.json("group", "list", "--retained")["items"][0]["lifecycle"] == "retained"
    assert len(shell.json("checkpoints", "shop")["items"]) == 5


def test_a_purge_asks_first(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer nothing is deleted; `--yes` is an answer."""
    shell.declare()
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    shell.run("group", "delete", "shop", "--on-destroy", "purge", status=130)
    assert shell.json("group", "list")["items"]
    shell.run("group", "delete", "shop", "--on-destroy", "purge", "--yes")
    assert shell.world.recovery.purged


def test_a_pause_says_what_follows_and_asks_where_the_application_would_wait(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--yes` is an answer; resume and resync ask nothing."""
    shell.declare()
    told = shell.run("pause", "shop", "copies", "--reason", "new disks")
    assert "copies to copies: the application goes on" in told
    assert "dpac resume shop copies" in told
    assert shell.json("resync", "shop", "--full")["result"] == {"legs": ["copies"]}
    assert "copies: resumed." in shell.run("resume", "shop")
    file = shell.world.root / "shop.json"
    sync = {"copies": {"mode": "sync", "target": "copies", "on_loss": "stop"}}
    file.write_text(json.dumps({"name": "shop", **shell.world.group_spec(replication=sync)}))
    shell.run("group", "apply", "-f", str(file))
    orders = len(shell.world.worker.orders)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    assert "the application WAITS" in shell.run("pause", "shop", status=130)
    assert len(shell.world.worker.orders) == orders
    assert "copies: paused." in shell.run("pause", "shop", "--yes")
    assert [order.verb for order in shell.world.worker.orders] == ["Pause", "Resync", "Resume", "Pause"]


# ------------------------------------------------------------------ looking


def test_status_shows_what_matters_on_one_line_a_group(shell: Shell) -> None:
    """With its conditions, which are told in full for one group."""
    shell.declare()
    line = shell.run("status").splitlines()[1]
    assert line.split()[:4] == ["shop", "yes", "Continuous", "Meeting"]
    assert "KeyNotEscrowed" in line
    assert "dpac key export" in shell.run("status", "shop")
    assert shell.json("status", "shop")["protected"] is True
    assert shell.json("status")["items"][0]["group"] == "shop"
    shell.world.worker.down = True
    assert "WorkerDown" in shell.run("status", "shop")


def test_status_tells_what_a_leg_says_in_a_line_of_its_own(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 80 columns a sentence in the table would be one word wide."""
    shell.declare()
    shell.world.worker.leg_message = "Nothing answers there. Check that the server runs."
    monkeypatch.setenv("COLUMNS", "80")
    assert "  copies: Nothing answers there. Check that the server runs." in shell.run("status", "shop").splitlines()


def test_listings_page(shell: Shell) -> None:
    """A cursor goes on; the last page has none."""
    for name in ("a", "b", "c"):
        shell.run("target", "add", name, "--path", str(shell.world.root / f"copies-{name}"))
    first = shell.json("target", "list", "--limit", "2")
    assert [item["name"] for item in first["items"]] == ["a", "b"]
    second = shell.json("target", "list", "--limit", "2", "--cursor", first["next_cursor"])
    assert ([item["name"] for item in second["items"]], second["next_cursor"]) == (["c"], None)
    assert "--cursor b" in (shell.run("target", "list", "--limit", "2"), shell.error)[1]
    shell.run("target", "list", "--cursor", "gone", status=2)


def test_checkpoints_draw_a_timeline_and_list_the_newest(shell: Shell) -> None:
    """With tags where they are, in the reader's own time."""
    shell.declare()
    text = shell.run("checkpoints", "shop", "--limit", "2")
    assert "copies: 5 checkpoints" in text
    assert "█" in text
    assert "▲ nightly  2027-01-15 17:00:00" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("ck-")] == ["ck-1-5", "ck-1-4"]
    page = shell.json("checkpoints", "shop", "--limit", "2")
    assert page["items"][0]["time"] == "2027-01-15T08:00:00Z"
    assert page["next_cursor"] == "4"
    before = shell.json("checkpoints", "shop", "--before", "2027-01-15T16:59:58")
    assert [item["id"] for item in before["items"]] == ["ck-1-2", "ck-1-1"], "a naive timestamp is local"
    shell.run("checkpoints", "shop", "--after", "yesterday", status=2)


def test_a_checkpoint_is_taken_with_its_tag(shell: Shell) -> None:
    """And told by id."""
    shell.declare()
    assert "ck-1-6 at" in shell.run("checkpoint", "shop", "--tag", "before-migration", "--app")
    assert (
        shell.json("operation", "list")["items"][0]["request"].items()
        >= {"tag": "before-migration", "app": True}.items()
    )


def test_a_hold_is_told_listed_and_released(shell: Shell) -> None:
    """With its reason, and until when."""
    shell.declare()
    shell.world.worker.repositories["copies"] = shell.world.repository
    shell.run("hold", "shop", "ck-1-2", "--reason", "audit", "--until", "tomorrow", status=2)
    told = shell.run("hold", "shop", "ck-1-2", "--reason", "audit")
    assert "ck-1-2" in told
    assert "is held at copies until `dpac release shop ck-1-2`" in told
    assert (
        shell.json("hold", "shop", "tag:nightly", "--until", "2031-01-01T00:00:00Z")["held_until"]
        == "2031-01-01T00:00:00Z"
    )
    listed = shell.run("checkpoints", "shop", "--held")
    assert "audit" in listed
    assert len(shell.json("checkpoints", "shop", "--held")["items"]) == 2
    shell.run("release", "shop", "ck-1-2")
    assert "ck-1-2" not in shell.run("checkpoints", "shop", "--held")
    shell.run("release", "shop", "ck-1-2", status=3)


def test_space_says_what_goes_where(shell: Shell) -> None:
    """By kind and level, what goes by itself and when, what is unique."""
    shell.declare()
    text = shell.run("space", "shop")
    for said in (
        "copies: about 7.0 MiB", "log, level 2", "joined", "Reclaimable: 2.0 MiB", "(1.5:1)", "ck-1-1", "512.0 KiB", "the last of it 2027",
    ):  # fmt: skip
        assert said in text
    (found,) = shell.json("space", "shop")
    assert found["kept"][0]["unique_bytes"] == 2**19
    known = shell.json("status", "shop")["legs"]["copies"]["space"]
    assert [known[f"{share}_bytes"] for share in ("unique", "shared", "reclaimable")] == [2**19, 7 * 2**19, 2**21]
    assert "512.0 KiB for one kept checkpoint alone, 3.5 MiB shared, 2.0 MiB goes by itself" in shell.run(
        "status", "shop"
    )


# ------------------------------------------------------------------ recovering


def test_a_mount_prints_where_its_members_are(shell: Shell) -> None:
    """And how to close it."""
    shell.declare()
    text = shell.run("mount", "shop", "--at", "tag:nightly", "--member", "disk")
    mount_id = text.split(":")[0]
    assert "nbd+unix:///" in text
    assert f"dpac unmount {mount_id}" in text
    assert shell.json("mounts")["items"][0]["id"] == mount_id
    shell.run("unmount", mount_id)
    assert shell.json("mounts")["items"] == []


def test_a_drill_leaves_a_report_that_proves_itself(shell: Shell) -> None:
    """Its signature is checked without the backend."""
    shell.declare()
    report = shell.world.root / "report.json"
    assert "passed" in shell.run("drill", "shop", "--rto", "1h", "--report", str(report))
    assert "✓ volume disk" in shell.error
    assert "signature is sound" in shell.run("drill", "--verify-report", str(report))
    changed = json.loads(report.read_text())
    key = changed["public_key"]
    shell.run("drill", "--verify-report", str(report), "--public-key", key)
    shell.run("drill", "--verify-report", str(report), "--public-key", "A" * 43 + "=", status=20)
    report.write_text(json.dumps({**changed, "rto_seconds": 0.5}))
    shell.run("drill", "--verify-report", str(report), status=20)
    assert "changed after it was signed" in shell.error


def test_a_failed_drill_ends_with_status_1_and_still_reports(shell: Shell) -> None:
    """The report of a failure is worth more than that of a success."""
    shell.declare()
    shell.world.recovery.checks["orders.db"] = "malformed"
    report = shell.world.root / "report.json"
    assert "malformed" in shell.run("drill", "shop", "--report", str(report), status=1)
    assert json.loads(report.read_text())["passed"] is False


def test_a_restore_says_what_it_wrote(shell: Shell) -> None:
    """And an operation can be looked at afterwards."""
    shell.declare()
    to = shell.world.root / "restored.raw"
    assert str(to) in shell.run("restore", "shop", "--member", "disk", "--to", str(to))
    assert to.stat().st_size == 2**20
    shell.run("restore", "shop", "--member", "disk", "--to", str(to), status=2)
    (operation,) = shell.json("operation", "list", "--kind", "Restore")["items"]
    assert "rename" in shell.run("operation", "show", operation["id"])


def test_a_restore_in_place_shows_what_would_change_and_asks(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """No is an answer; a dry run only shows; the end tells how to undo it."""
    shell.declare()
    words = ("restore", "shop", "--member", "disk", "--at", "ck-1-2", "--in-place")
    shell.run(*words, "--dry-run")
    assert "1 ranges changed, 512 B" in shell.error
    assert "disk: bytes 8192 to 8704" in shell.error
    assert shell.json(*words, "--dry-run")["after"] == "ck-1-2"
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: (_ for _ in ()).throw(typer.Abort()))
    shell.run(*words, status=130)
    assert shell.world.worker.rewinds == []
    told = shell.run(*words, "--yes")
    assert "disk is as it was at ck-1-2: 512 B written" in told
    assert "To undo: dpac restore shop --member disk --in-place --at tag:before-restore-op-" in told
    assert len(shell.world.worker.rewinds) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--in-place"),
        (("--to", "/tmp/x", "--in-place"), "--to PATH"),
        (("--in-place", "--path", "etc"), "comes back whole"),
        (("--to", "/tmp/x", "--yes"), "go with --in-place"),
    ],
)
def test_options_of_a_restore_that_do_not_go_together_are_refused(
    shell: Shell, options: tuple[str, ...], says: str
) -> None:
    """In words, before anything is asked."""
    shell.run("restore", "shop", "--member", "disk", *options, status=2)
    assert says in shell.error


def test_work_that_is_not_waited_for_is_told_by_its_id(shell: Shell) -> None:
    """For scripts that have other things to do."""
    shell.declare()
    begun = shell.json("drill", "shop", "--no-wait")
    assert begun["kind"] == "Drill"
    assert shell.json("operation", "show", begun["id"])["id"] == begun["id"]


def test_verify_ends_by_what_it_found(shell: Shell) -> None:
    """0 for sound, 20 for damage, for one group and for all."""
    repository = shell.declare()
    assert "copies through ck-1-5" in shell.run("verify", "shop")
    assert shell.json("verify")["items"][0]["result"]["findings"] == []
    lost = LostPart("disk", [(4096, 512)], ["etc/a.conf"], more=3)
    repository.findings = [Finding("s/1", "torn", [Run("ck-1-4", 4, "ck-1-5", None)], exact=False, lost=[lost])]
    told = shell.run("verify", "shop", status=20)
    assert "s/1: torn" in told
    assert "ck-1-4 to ck-1-5 and later ones (at most" in told
    assert "disk: bytes 4096 to 4608, etc/a.conf and 3 more" in told
    shell.run("verify", status=20)


def test_a_bucket_is_added_by_its_options(shell: Shell) -> None:
    """Every option arrives; a target is either a directory or a bucket; a wrong option is named and repeats no secret."""
    options = (
        "--bucket shop-copies --prefix site-a --region eu-central-1 --endpoint http://127.0.0.1:9000 "
        "--storage-class STANDARD_IA --host-style --credentials file:/etc/dpac/s3 --proxy http://proxy:3128 --onsite "
        "--price storage_gib_month=0.5 --price currency=EUR --object-lock governance"
    )
    made = shell.json("target", "add", "cloud", *options.split())
    assert made["spec"] == {
        "kind": "s3",
        "bucket": "shop-copies",
        "prefix": "site-a",
        "region": "eu-central-1",
        "endpoint": "http://127.0.0.1:9000",
        "storage_class": "STANDARD_IA",
        "path_style": False,
        "credentials": "file:/etc/dpac/s3",
        "ca_file": None,
        "proxy": "http://proxy:3128",
        "offsite": False,
        "object_lock": "governance",
        "prices": {
            "currency": "EUR",
            "storage_gib_month": 0.5,
            "write_1000": None,
            "read_1000": None,
            "retrieval_gib": None,
            "egress_gib": None,
        },
    }
    assert "s3://shop-copies/site-a" in shell.run("target", "list")
    shell.run("target", "add", "cloud", status=2)
    assert "either --path or --bucket" in shell.error
    shell.run("target", "add", "cloud", "--bucket", "b-1", "--credentials", "AKIA:s3cr3t", status=2)
    assert "credentials: it must say where" in shell.error
    assert "s3cr3t" not in shell.error


def test_a_target_shows_what_it_holds_and_costs(shell: Shell) -> None:
    """As text and as JSON; a folder costs nothing that dpac knows of, a bucket as much as its prices say."""
    shell.declare()
    assert "stored 0 B, used by shop" in shell.run("target", "show", "copies")
    assert shell.json("target", "show", "copies")["usage"]["monthly_cost"] is None
    shell.run("target", "add", "cloud", "--bucket", "shop-copies")
    assert "about 0.00 USD a month" in shell.run("target", "show", "cloud")
    shell.run("target", "add", "own", "--bucket", "shop-copies", "--endpoint", "http://127.0.0.1:9000")
    assert "declare `prices`" in shell.run("target", "show", "own")
    shell.run("target", "show", "nowhere", status=3)
    shell.run("target", "add", "own", "--bucket", "b-1", "--price", "storage", status=2)
    assert "write NAME=VALUE" in shell.error


def test_files_and_diff_tell_what_a_checkpoint_holds_and_how_two_differ(shell: Shell) -> None:
    """Lines for people, pages for scripts, and single files by --path."""
    shell.declare()
    shell.world.fill_repository()
    entry = encode_entry(Entry(EntryType.FILE, 0o640, 0, 0, 10**18, size=7)).value
    shell.world.repository.trees[2].files = {b"etc/a.conf": entry, b"etc/b.conf": entry}
    assert "etc/a.conf" in shell.run("files", "shop", "etc/a*", "--member", "orders")
    page = shell.json("files", "shop", "--member", "orders", "--limit", "1")
    assert (len(page["items"]), page["next_cursor"]) == (1, "ck-1-5:1")
    shell.run("files", "shop", "etc/a.cnf", "--member", "orders", status=3)
    assert "There is: etc/a.conf" in " ".join(shell.error.split())
    told = shell.run("diff", "shop", "--from", "ck-1-2")
    assert "ck-1-2 to ck-1-5" in told
    assert "~ disk: bytes 8192 to 8704" in told
    assert "+ orders: new.txt (5 B)" in told
    assert "~ orders: note.txt (3 B -> 5 B)" in told
    assert shell.json("diff", "shop", "--from", "ck-1-2", "--member", "orders")["members"][0]["added"] == 1
    to = shell.world.root / "one"
    shell.run("restore", "shop", "--member", "orders", "--path", "nothing", "--to", str(to), status=1)
    assert not to.exists()


def test_a_target_check_fails_if_a_probe_does(shell: Shell) -> None:
    """With the probe's own words."""
    shell.declare()
    assert "✓ write" in shell.run("target", "check", "copies")
    shell.world.recovery.probes[str(shell.world.root / "copies")] = "read-only file system"
    assert "✗ write: read-only file system" in shell.run("target", "check", "copies", status=10)


# ------------------------------------------------------------------ access


def test_a_tokens_secret_is_printed_once_or_written_to_a_file(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is the secret alone, so that it can be piped."""
    secret = shell.run("token", "create", "ci", "--scope", "read").strip()
    assert secret.startswith("dpac_")
    file = shell.world.root / "token"
    shell.run("token", "create", "operator", "--scope", "operate", "--file", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    listed = shell.run("token", "list")
    assert secret not in listed
    monkeypatch.setenv("DPAC_TOKEN_FILE", str(file))
    shell.run("group", "list")
    shell.run("target", "add", "x", "--path", str(shell.world.root / "x"), status=6)
    monkeypatch.setenv("DPAC_TOKEN_FILE", str(shell.world.data / "tokens" / "admin"))
    shell.run("token", "revoke", "operator")
    monkeypatch.setenv("DPAC_TOKEN_FILE", str(file))
    shell.run("group", "list", status=6)


def test_no_token_is_made_if_its_file_cannot_be(shell: Shell) -> None:
    """A secret that is lost is a token nobody can use."""
    (shell.world.root / "there").write_text("x")
    shell.run("token", "create", "ci", "--file", str(shell.world.root / "there"), status=2)
    assert shell.json("token", "list")["items"] == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["status", "none"], 3),
        (["checkpoints", "none"], 3),
        (["mount", "none"], 3),
        (["operation", "show", "none"], 3),
        (["status", "--nonsense"], 2),
        (["nonsense"], 2),
        (["restore", "shop"], 2),
        (["drill"], 2),
        (["drill", "shop", "--rto", "soon"], 2),
        (["status", "--watch", "--json"], 2),
        (["--site", "nowhere", "status"], 2),
        (["key", "status", "--data", "/nowhere"], 3),
    ],
)
def test_a_mistake_is_one_message_and_a_status(shell: Shell, arguments: list[str], status: int) -> None:
    """Never a traceback."""
    shell.run(*arguments, status=status)
    assert shell.error.strip()


def test_a_backend_that_is_gone_is_unreachable(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not the same as having no group."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("DPAC_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("dpac_engine.control.commands.session.RETRY_SECONDS", 0.1)
    shell.run("group", "list", status=11)


# ------------------------------------------------------------------ without a backend


def test_contexts_are_set_listed_used_and_removed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The file that the provider reads too."""
    shell = Shell.__new__(Shell)
    shell.capsys = capsys
    shell.run("context", "set", "fra", "--endpoint", "http://127.0.0.1:1", "--token-file", str(tmp_path / "t"))
    shell.run("context", "set", "ams", "--endpoint", "http://127.0.0.1:2")
    shell.run("context", "use", "fra")
    listed = shell.json("context", "list")["items"]
    assert [(item["name"], item["current"]) for item in listed] == [("ams", False), ("fra", True)]
    shell.run("context", "remove", "ams")
    shell.run("context", "use", "ams", status=3)
    shell.run("context", "set", "bad", "--endpoint", "http://x", "--site-uid", "short", status=2)


def test_a_key_is_exported_and_its_copy_confirmed_by_reading_it_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A damaged copy, or another site's, is not accepted."""
    shell = Shell.__new__(Shell)
    shell.capsys = capsys
    data = tmp_path / "site"
    data.mkdir()
    Site.open(data, name="fra")
    copy = tmp_path / "copy.json"
    shell.run("key", "export", "--to", str(copy), "--data", str(data))
    assert copy.stat().st_mode & 0o777 == 0o600
    assert shell.json("key", "status", "--data", str(data))["confirmed"] is None
    shell.run("key", "confirm", str(copy), "--data", str(data))
    assert shell.json("key", "status", "--data", str(data))["confirmed"].endswith("Z")
    shell.run("key", "export", "--to", str(copy), "--data", str(data), status=4)
    copy.write_text("{}")
    shell.run("key", "confirm", str(copy), "--data", str(data), status=20)


def test_the_command_line_starts_without_what_only_the_backend_needs() -> None:
    """`dpac status` must come up at once: no SQLAlchemy, numpy, FastAPI or cryptography."""
    script = (
        "import sys; from dpac_engine.wiring import main; sys.argv = ['dpac', 'status'];\n"
        "main(); print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'sqlalchemy', 'alembic', 'numpy', 'fastapi', 'uvicorn', 'cryptography', 'pulumi', 'prometheus_client'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
    assert "DPAC_ENDPOINT" in done.stderr


# ------------------------------------------------------------------ drawing


def at(seconds: float) -> datetime:
    return datetime(2027, 1, 15, tzinfo=UTC) + timedelta(seconds=seconds)


def run_of(first: int, last: int) -> CheckpointRange:
    """A run of one checkpoint a second."""
    return CheckpointRange(
        target="copies",
        first=f"ck-1-{first}",
        last=f"ck-1-{last}",
        first_time=at(first),
        last_time=at(last),
        count=last - first + 1,
    )


def test_a_gap_in_the_timeline_is_drawn_and_told() -> None:
    """Runs that follow each other are one; a pause is a gap."""
    runs = [run_of(0, 19), run_of(20, 39), run_of(80, 100)]
    lines = draw("copies", runs, [("midway", at(30))], 60)
    assert gaps(runs) == [(at(39), at(80))]
    assert any(line.strip().startswith("gap:") and "41.0 s" in line for line in lines)
    bar = lines[1].strip()
    assert bar.startswith("█")
    assert bar.endswith("█")
    assert 0.3 < bar.count("·") / len(bar) < 0.5
    assert lines[2].index("▲") < lines[1].index("·")
    assert all(len(line) <= 60 for line in lines[:3])


def test_one_checkpoint_is_a_timeline_too() -> None:
    """No division by its length."""
    assert "1 checkpoints" in draw("copies", [run_of(5, 5)], [], 60)[0]


def test_numbers_read_as_people_say_them() -> None:
    """One unit, few digits."""
    assert [duration(seconds) for seconds in (0.04, 61, 600, 7200, 864_000)] == [
        "0.0 s",
        "61.0 s",
        "10 min",
        "2 h",
        "10 d",
    ]
    assert [size(count) for count in (0, 1023, 2**20, 3 * 2**40)] == ["0 B", "1023 B", "1.0 MiB", "3.0 TiB"]


def test_a_page_goes_on_after_its_cursor() -> None:
    """Whatever the listing."""
    assert page_of("abcde", str, 2, None) == (["a", "b"], "b")
    assert page_of("abcde", str, 2, "d") == (["e"], None)
    assert page_of("", str, 2, None) == ([], None)
