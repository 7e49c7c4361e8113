"""The policy pack under the real CLI: it fails what violates, passes what does not, and `dpac policy check` says the same."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpac_api import escrow_keys
from dpac_policy.rules import RULES
from setup.checkout import ROOT, VENV_BIN
from tests.pulumi.conftest import Shop
from tests.stack import Stack
from tests.tools import pulumi_environment

pytestmark = pytest.mark.pulumi

KEY = escrow_keys.public_text(bytes(range(32)))
GROUP = 'group = dpac.ProtectionGroup("shop", members={{"d": dpac.Directory("/srv/d")}}, {})'
VIOLATING = "\n".join(
    (
        'copies = dpac.FilesystemTarget("copies", path="/mnt/copies")',
        'mirror = dpac.FilesystemTarget("mirror", path="/mnt/mirror")',
        GROUP.format(
            'replication={"copies": dpac.Async(to=copies, rpo="2h"), "mirror": dpac.Sync(to=mirror)}, '
            'labels={"environment": "production", "token": pulumi.Output.secret("s3cr3t")}'
        ),
    )
)
COMPLIANT = "\n".join(
    (
        'vault = dpac.S3Target("vault", bucket="vault", object_lock="compliance")',
        GROUP.format(
            'replication={"vault": dpac.Async(to=vault, rpo="15s", retention=dpac.Retention(immutable_for="14d"))}, labels={"environment": "production"}, '
            f'encryption=dpac.Encryption(escrow=["{KEY}"])'
        ),
        'dpac.Drill("rehearsal", group=group, rto="15m")',
    )
)
UNKNOWN = """
import pulumi.dynamic
class Made(pulumi.dynamic.ResourceProvider):
    def create(self, props):
        return pulumi.dynamic.CreateResult("x", {"escrow": []})
class Vault(pulumi.dynamic.Resource):
    escrow: pulumi.Output[list[str]]
    def __init__(self):
        super().__init__(Made(), "vault", {"escrow": None})
copies = dpac.FilesystemTarget("copies", path="/mnt/copies")
group = dpac.ProtectionGroup("shop", members={"d": dpac.Directory("/srv/d")},
    replication={"copies": dpac.Async(to="elsewhere", retention=dpac.Retention(immutable_for="14d"))}, labels={"environment": "production"},
    encryption=dpac.Encryption(escrow=Vault().escrow))
dpac.Drill("rehearsal", group=group)
"""


@dataclass
class Judged:
    """How a preview with the pack ended."""

    status: int
    said: str


class Judge:
    """A stack whose previews are judged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack(folder / "program", pulumi_environment(folder / "pulumi"))

    def preview(self, program: str, configuration: Any = None) -> Judged:
        """`pulumi preview --policy-pack policy` of a program."""
        self.stack.write(program)
        options = ["--policy-pack", str(ROOT / "policy")]
        if configuration is not None:
            (self.folder / "policy.json").write_text(json.dumps(configuration))
            options += ["--policy-pack-config", str(self.folder / "policy.json")]
        done = self._pulumi("preview", *options)
        assert "Traceback" not in done.stdout + done.stderr
        return Judged(done.returncode, done.stdout + done.stderr)

    def check(self, *options: str) -> tuple[int, Any]:
        """`dpac policy check` of the program that was previewed last, given as JSON by standard input."""
        printed = self._pulumi("preview", "--json", "--show-sames").stdout
        done = subprocess.run(
            [VENV_BIN / "dpac", "policy", "check", "--preview", "-", "--json", *options],
            input=printed,
            env={**os.environ, "DPAC_ENDPOINT": "http://127.0.0.1:1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def _pulumi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        workspace = self.stack.stack.workspace
        return subprocess.run(
            [workspace.pulumi_command.command, *arguments, "--stack", self.stack.stack.name, "--non-interactive"],
            cwd=self.stack.folder,
            env={**os.environ, **workspace.env_vars},
            capture_output=True,
            text=True,
            timeout=240,
        )


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """One for all: previews leave nothing behind."""
    return Judge(tmp_path_factory.mktemp("policy"))


def test_what_violates_fails_and_names_resource_rule_and_fix(judge: Judge) -> None:
    """By the pack and by `dpac policy check` alike; a secret label is in neither."""
    judged = judge.preview(VIOLATING)
    status, found = judge.check()
    assert judged.status != 0
    assert "preview failed" in judged.said
    assert status == 1
    mandatory = {one["rule"] for one in found["findings"] if one["level"] == "mandatory"}
    assert mandatory == set(RULES)
    for one in found["findings"]:
        assert (
            f"[{one['level']}]  {one['rule']}  (pulumi-python:dynamic/dpac:ProtectionGroup: shop-group)" in judged.said
        )
        assert f"ProtectionGroup 'shop', {one['property']}: {one['problem']} [{one['rule']}]" in judged.said
        assert f"Fix: {one['fix']}" in judged.said
    assert "s3cr3t" not in judged.said + json.dumps(found)


def test_what_complies_passes(judge: Judge) -> None:
    """Nothing is left to say."""
    judged = judge.preview(COMPLIANT)
    assert judged.status == 0, judged.said
    assert "[mandatory]" not in judged.said
    status, found = judge.check()
    assert (status, found["groups"], found["violated"]) == (0, 1, 0)
    assert found["findings"] == []
    assert "✅ dpac" in judged.said


def test_advice_fails_nothing_and_settings_move_bounds(judge: Judge) -> None:
    """The same file configures both faces."""
    judged = judge.preview(
        VIOLATING, {"all": "advisory", "production-has-offsite-copy": "disabled", "group-has-rpo": {"rpoMax": "1h"}}
    )
    assert judged.status == 0, judged.said
    assert "[advisory]  key-is-escrowed" in judged.said
    assert "the leg's RPO is longer than 1h." in judged.said
    assert "production-has-offsite-copy" not in judged.said
    status, found = judge.check("--config", str(judge.folder / "policy.json"))
    assert (status, found["violated"]) == (0, 0)
    assert "production-has-offsite-copy" not in {one["rule"] for one in found["findings"]}


def test_what_is_not_known_before_the_update_is_said_and_fails_nothing(judge: Judge) -> None:
    """An escrow key that another resource is still to give, and a target that is declared elsewhere."""
    judged = judge.preview(UNKNOWN)
    assert judged.status == 0, judged.said
    assert judged.said.count("[advisory]  not-known-yet") == 2
    status, found = judge.check()
    assert status == 0
    unknown = {one["rule"] for one in found["findings"] if not one["known"]}
    assert unknown == {"key-is-escrowed", "production-has-offsite-copy"}
    assert judge.preview(UNKNOWN, {"not-known-yet": "mandatory"}).status != 0


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"group-has-rpoo": "advisory"}, "There is no rule 'group-has-rpoo'"),
        ({"group-has-rpo": {"rpoMaxx": "1h"}}, "there is no setting 'rpoMaxx'"),
        ({"group-has-rpo": {"rpoMax": "soon"}}, "rpoMax"),
        ({"all": "remediate"}, "nothing is remediated"),
    ],
    ids=["rule", "setting", "value", "level"],
)
def test_a_wrong_configuration_is_an_error(judge: Judge, configuration: Any, says: str) -> None:
    """Nobody believes that a rule is configured that is not."""
    judged = judge.preview(COMPLIANT, configuration)
    assert judged.status != 0
    assert says in judged.said


def test_after_an_update_the_drill_that_ran_counts_and_the_site_agrees(shop: Shop) -> None:
    """Unchanged resources are judged too: by what the drill found, which ages; and `dpac policy check` asks the site."""
    shop.program(
        'ready = dpac.Ready("ready", group=group, timeout="1m")',
        'dpac.Drill("first", group=group, opts=pulumi.ResourceOptions(depends_on=[ready]))',
        encryption=f'dpac.Encryption(escrow=["{KEY}"])',
    )
    options = {"policy_packs": [str(ROOT / "policy")]}
    shop.stack.up(**options)
    shop.stack.up(expect_no_changes=True, **options)
    shop.backend.dpac("policy", "check")
    (shop.folder / "policy.json").write_text('{"group-is-drilled": {"within": "1ms"}}')
    packs = {**options, "policy_pack_configs": [str(shop.folder / "policy.json")]}
    with pytest.raises(Exception, match="what its newest drill has proven is older than 1ms"):
        shop.stack.up(**packs)
    exported = shop.stack.exported()
    for given in (["--preview", "-"], []):
        done = subprocess.run(
            [VENV_BIN / "dpac", "policy", "check", "--config", str(shop.folder / "policy.json"), *given],
            env=shop.backend.environ,
            input=exported,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1, done.stderr
        assert f"ProtectionGroup '{shop.name}', drill: what its newest drill has proven is older" in done.stdout
