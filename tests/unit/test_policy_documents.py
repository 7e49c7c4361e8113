"""What Pulumi prints and what a site has, read for the rules; and `dpac policy check` over both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpac_api import escrow_keys
from dpac_api.errors import Invalid
from dpac_policy.declared import UNKNOWN
from dpac_policy.documents import read_document
from tests.unit.test_cli_commands import Shell
from tests.unit.test_cli_commands import shell as shell  # a site in memory

URN = "urn:pulumi:dev::shop::dpac:index:{0}$pulumi-python:dynamic/dpac:{0}::{1}"
UNKNOWN_TEXT = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "plaintext": '"s3cr3t"'}


def state(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    """A resource as Pulumi prints it."""
    return {"urn": URN.format(kind, name), "type": f"pulumi-python:dynamic/dpac:{kind}", **parts}


def preview(*steps: tuple[str, dict[str, Any]], **more: Any) -> str:
    """What `pulumi preview --json` prints."""
    return json.dumps({"steps": [{"op": op, "newState": held} for op, held in steps], **more})


def test_a_preview_and_an_export_of_the_same_resources_say_the_same() -> None:
    """Inputs, and what a drill has found; what is unknown, masked or secret is not known; the rest is left out."""
    group = state(
        "ProtectionGroup",
        "shop-group",
        inputs={"name": "shop", "labels": {"a": UNKNOWN_TEXT, "b": "[secret]", "c": SECRET, "d": "e"}},
        outputs={"name": "old"},
    )
    drill = state("Drill", "first-drill", inputs={"group": "shop"}, outputs={"checkpoint_time": "2026-01-01"})
    other = {"urn": "urn:pulumi:dev::shop::aws:s3:Bucket::b", "type": "aws:s3:Bucket", "inputs": {}}
    gone = state("ProtectionGroup", "gone-group", inputs={})
    shown = read_document(
        "Previewing...\n" + preview(("create", group), ("same", drill), ("create", other), ("delete", gone))
    )
    exported = read_document(
        json.dumps({"version": 3, "deployment": {"resources": [group, drill, other, {**gone, "delete": True}]}})
    )
    assert shown == exported
    assert [(one.kind, one.name) for one in shown] == [("ProtectionGroup", "shop"), ("Drill", "first")]
    assert shown[0].properties["labels"] == {"a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN, "d": "e"}
    assert shown[0].at("name") == "shop"
    assert shown[1].at("checkpoint_time") == "2026-01-01"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "not JSON"),
        ("{", "not JSON"),
        ("{}", "neither a preview nor a stack"),
        (preview(changeSummary={"same": 3}), "--show-sames"),
        (preview(diagnostics=[{"severity": "error", "message": "no such thing"}]), "no such thing"),
    ],
)
def test_what_does_not_tell_everything_is_not_judged(text: str, says: str) -> None:
    """A pass of half a stack would be a lie."""
    with pytest.raises(Invalid, match=says):
        read_document(text)


def _check(shell: Shell, *arguments: str, status: int = 0) -> Any:
    return shell.json("policy", "check", *arguments, status=status)


def test_a_preview_is_checked_without_a_backend(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1 for mandatory violations, named for people and as JSON; 0 where they are advisory."""
    monkeypatch.setenv("DPAC_ENDPOINT", "http://127.0.0.1:1")
    file, config = tmp_path / "preview.json", tmp_path / "policy.json"
    file.write_text(preview(("create", state("ProtectionGroup", "shop-group", inputs={"name": "shop"}))))
    found = _check(shell, "--preview", str(file), status=1)
    assert (found["groups"], found["violated"]) == (1, 3)
    assert {one["rule"] for one in found["findings"]} == {"group-has-rpo", "key-is-escrowed", "group-is-drilled"}
    assert {one["resource"] for one in found["findings"]} == {"shop"}
    said = shell.run("policy", "check", "--preview", str(file), status=1)
    assert "mandatory: ProtectionGroup 'shop', replication: it has no leg" in said
    assert "Fix: run `dpac key generate-escrow" in said
    assert "3 mandatory violations" in shell.error

    config.write_text('{"all": "advisory"}')
    assert _check(shell, "--preview", str(file), "--config", str(config))["violated"] == 0
    config.write_text('{"group-has-rpos": "advisory"}')
    shell.run("policy", "check", "--preview", str(file), "--config", str(config), status=2)
    assert "group-has-rpos" in shell.error
    config.write_text("{")
    shell.run("policy", "check", "--preview", str(file), "--config", str(config), status=2)
    shell.run("policy", "check", "--preview", str(tmp_path / "none"), status=2)


def test_a_site_is_checked_as_it_is(shell: Shell) -> None:
    """Declared, escrowed in either way, drilled: each violation ends when its fix was carried out."""
    shell.declare()

    def rules(status: int) -> set[str]:
        return {one["rule"] for one in _check(shell, status=status)["findings"]}

    assert rules(1) == {"key-is-escrowed", "group-is-drilled"}
    shell.run("drill", "shop")
    assert rules(1) == {"key-is-escrowed"}
    shell.world.keyring.confirmed = True
    assert rules(0) == set()
    shell.world.keyring.confirmed = False
    key = escrow_keys.public_text(bytes(range(32)))
    spec = {"name": "shop", **shell.world.group_spec(), "encryption": {"escrow": [key]}}
    file = shell.world.root / "shop.json"
    file.write_text(json.dumps({**spec, "labels": {"environment": "production"}}))
    shell.run("group", "apply", "-f", str(file))
    assert rules(1) == {"production-has-offsite-copy", "production-has-immutable-copy"}
    shell.run("target", "add", "copies", "--path", str(shell.world.root / "copies"), "--offsite")
    assert rules(1) == {"production-has-immutable-copy"}
    shell.run("target", "add", "vault", "--bucket", "vault", "--object-lock", "compliance")
    leg = {"target": "vault", "retention": {"immutable_for": "14d"}}
    immutable = {**spec, "labels": {"environment": "production"}, "replication": {"vault": leg}}
    file.write_text(json.dumps(immutable))
    shell.run("group", "apply", "-f", str(file))
    assert rules(0) == set()
