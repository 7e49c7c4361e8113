"""The rules of the policy pack: what each finds and does not find, what it cannot know, and that nothing secret is told."""

from __future__ import annotations

import ast
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Invalid
from dpac_policy.configuration import DrillSettings, ImmutableSettings, Level, ProductionSettings, RpoSettings
from dpac_policy.declared import DRILL, GROUP, TARGET, UNKNOWN, Declared, Stack, kind_of, name_of
from dpac_policy.rules import DEFAULTS, NOT_KNOWN_YET, RULES, Finding, configuration_of, judge, violated

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEY = "dpac-escrow-" + "a" * 58
PRODUCTION = {"environment": "production"}


def group(**changes: Any) -> Declared:
    """A group that every rule is content with, and changes; None takes a property away."""
    leg = {"mode": "async", "target": "far", "rpo": "15s", "retention": {"immutable_for": "30d"}}
    held = {
        "name": "shop",
        "replication": {"far": leg},
        "encryption": {"escrow": [KEY]},
        "labels": PRODUCTION,
        **changes,
    }
    properties = {key: value for key, value in held.items() if value is not None}
    return Declared(GROUP, "shop", "urn:shop", properties)


def leg(**changes: Any) -> dict[str, Any]:
    """The legs of a group: one, with changes."""
    held = {"mode": "async", "target": "far", "rpo": "15s", **changes}
    return {"far": {key: value for key, value in held.items() if value is not None}}


FAR = Declared(TARGET, "far", "urn:far", {"name": "far", "offsite": True})
NEAR = Declared(TARGET, "far", "urn:far", {"name": "far", "offsite": False})
REHEARSED = Declared(DRILL, "first", "urn:first", {"group": "shop"})


def findings(rule: str, one: Declared, *others: Declared, **settings: Any) -> list[Finding]:
    """What one rule finds in a group among others."""
    asked = RULES[rule]
    return asked.findings(one, Stack([one, *(others or (FAR, REHEARSED))], NOW), asked.settings(**settings))


def only(found: list[Finding]) -> Finding:
    """The only one."""
    assert len(found) == 1, found
    return found[0]


def drilled(ago: timedelta) -> Declared:
    """A drill that has proven a checkpoint of some time ago."""
    return Declared(DRILL, "d", "urn:d", {"group": "shop", "checkpoint_time": (NOW - ago).isoformat()})


def test_what_every_rule_asks_for_is_found_by_none() -> None:
    """The compliant case of each rule."""
    stack = Stack([group(), FAR, REHEARSED], NOW)
    assert judge(stack, configuration_of({"all": "mandatory"})) == []


VIOLATIONS: dict[str, list[tuple[Declared, tuple[Declared, ...], str]]] = {
    "group-has-rpo": [
        (group(replication=None), (), "replication"),
        (group(replication={}), (), "replication"),
        (group(replication=leg(rpo=None)), (), "replication.far.rpo"),
        (group(replication=leg(rpo="2d"), labels=None), (), "replication.far.rpo"),
        (group(replication=leg(rpo="2h")), (), "replication.far.rpo"),
    ],
    "key-is-escrowed": [
        (group(encryption=None), (), "encryption.escrow"),
        (group(encryption={"escrow": []}), (), "encryption.escrow"),
        (group(encryption=None, key_escrowed=False), (), "encryption.escrow"),
    ],
    "group-is-drilled": [
        (group(), (FAR,), "drill"),
        (group(), (Declared(DRILL, "d", "urn:d", {"group": "other"}),), "drill"),
        (group(), (Declared(DRILL, "d", "urn:d", {"group": "shop", "site": "ber"}),), "drill"),
        (group(), (drilled(timedelta(days=91)),), "drill"),
    ],
    "sync-says-on-loss": [(group(replication=leg(mode="sync")), (), "replication.far.on_loss")],
    "production-has-offsite-copy": [
        (group(), (NEAR,), "replication"),
        (group(replication={}), (FAR,), "replication"),
    ],
    "production-has-immutable-copy": [
        (group(replication=leg()), (), "replication.*.retention.immutable_for"),
        (group(replication=leg(retention={"immutable_for": "6d"})), (), "replication.*.retention.immutable_for"),
    ],
}


@pytest.mark.parametrize(
    ("rule", "one", "others", "path"),
    [(rule, *case) for rule, cases in VIOLATIONS.items() for case in cases],
    ids=[f"{rule}-{count}" for rule, cases in VIOLATIONS.items() for count in range(len(cases))],
)
def test_a_violation_names_resource_rule_property_and_fix(
    rule: str, one: Declared, others: tuple[Declared, ...], path: str
) -> None:
    """Each violating case of each rule."""
    found = only(findings(rule, one, *others))
    assert found.known
    assert found.property_path == path
    for part in ("'shop'", f"[{rule}]", path, f"Fix: {found.fix}"):
        assert part in found.message


PASSES: dict[str, list[tuple[Declared, tuple[Declared, ...]]]] = {
    "group-has-rpo": [(group(replication=leg(rpo="2h"), labels={"environment": "test"}), ())],
    "key-is-escrowed": [
        (group(encryption=None, key_escrowed=True), ()),
        (group(encryption={"escrow": [UNKNOWN, KEY]}), ()),
    ],
    "group-is-drilled": [
        (group(), (drilled(timedelta(days=89)),)),
        (group(), (drilled(timedelta(days=99)), REHEARSED)),
    ],
    "sync-says-on-loss": [(group(replication=leg(mode="sync", on_loss="stop")), ())],
    "production-has-offsite-copy": [(group(labels={}), (NEAR,))],
    "production-has-immutable-copy": [(group(replication=leg(), labels=None), ())],
}


@pytest.mark.parametrize(("rule", "one", "others"), [(rule, *case) for rule, cases in PASSES.items() for case in cases])
def test_what_is_near_a_violation_and_none(rule: str, one: Declared, others: tuple[Declared, ...]) -> None:
    """Bounds, groups that are not production, a site's own escrow."""
    assert findings(rule, one, *others) == []


UNKNOWNS: dict[str, list[tuple[Declared, tuple[Declared, ...]]]] = {
    "group-has-rpo": [
        (group(replication=UNKNOWN), ()),
        (group(replication={"far": UNKNOWN}), ()),
        (group(replication=leg(rpo=UNKNOWN)), ()),
        (group(replication=leg(rpo="2h"), labels=UNKNOWN), ()),
        (group(replication=leg(rpo="2h"), labels={"environment": UNKNOWN}), ()),
    ],
    "key-is-escrowed": [
        (group(encryption=UNKNOWN), ()),
        (group(encryption={"escrow": UNKNOWN}), ()),
        (group(encryption={"escrow": [UNKNOWN]}), ()),
    ],
    "group-is-drilled": [
        (group(), (Declared(DRILL, "d", "urn:d", {"group": UNKNOWN}),)),
        (group(name=UNKNOWN), ()),
    ],
    "sync-says-on-loss": [
        (group(replication=leg(mode="sync", on_loss=UNKNOWN)), ()),
        (group(replication={"far": UNKNOWN}), ()),
    ],
    "production-has-offsite-copy": [
        (group(replication=leg(target="elsewhere")), ()),
        (group(replication=leg(target=UNKNOWN)), ()),
        (group(replication=UNKNOWN), ()),
        (group(labels=UNKNOWN), (NEAR,)),
        (group(), (Declared(TARGET, "far", "urn:far", {"name": "far", "offsite": UNKNOWN}),)),
    ],
    "production-has-immutable-copy": [
        (group(replication=leg(retention={"immutable_for": UNKNOWN})), ()),
        (group(replication=UNKNOWN), ()),
        (group(labels=UNKNOWN, replication=leg()), ()),
    ],
}


@pytest.mark.parametrize(
    ("rule", "one", "others"), [(rule, *case) for rule, cases in UNKNOWNS.items() for case in cases]
)
def test_what_is_not_known_is_neither_a_violation_nor_passed(
    rule: str, one: Declared, others: tuple[Declared, ...]
) -> None:
    """It is said that it is not known, and by default that fails nothing."""
    found = only(findings(rule, one, *others))
    assert not found.known
    assert violated([(DEFAULTS[NOT_KNOWN_YET][0], found)]) == []
    resources = [one, *(others or (FAR, REHEARSED))]
    told = [
        one for level, one in judge(Stack(resources, NOW), configuration_of({"all": "disabled", rule: "mandatory"}))
    ]
    assert told == [], "a disabled not-known-yet shows nothing"


def test_settings_move_the_bounds() -> None:
    """Each setting changes what its rule finds."""
    assert findings("group-has-rpo", group(), rpoMax="10s")
    assert findings("group-has-rpo", group(), productionRpoMax="10s")
    assert not findings("group-has-rpo", group(), productionRpoMax="10s", productionLabel="tier=1")
    assert findings("group-is-drilled", group(), drilled(timedelta(days=2)), within="1d")
    assert findings("production-has-immutable-copy", group(), daysMin=31)
    assert not findings("production-has-offsite-copy", group(), NEAR, productionLabel="tier=1")


def test_a_target_of_another_site_is_another_target() -> None:
    """Names are unique per site only."""
    there = Declared(TARGET, "far", "urn:far", {"name": "far", "site": "ber", "offsite": True})
    assert not only(findings("production-has-offsite-copy", group(site="fra"), there)).known
    assert not findings("production-has-offsite-copy", group(site="ber"), there)


def test_no_value_is_ever_told() -> None:
    """Every string in the properties, keys of legs and the resource's name apart, is missing from all messages."""
    secret = "s3cr3t"
    one = group(
        name=f"{secret}-name",
        encryption={"escrow": []},
        labels={"environment": "production", "token": secret},
        replication={
            "a": {"mode": "sync", "target": f"{secret}-target", "rpo": "400d", "retention": {"immutable_for": secret}},
            "b": {"mode": "async", "target": f"{secret}-more", "rpo": secret},
        },
    )
    target = Declared(TARGET, "t", "urn:t", {"name": f"{secret}-target", "offsite": False})
    drill = Declared(DRILL, "d", "urn:d", {"group": f"{secret}-name", "checkpoint_time": secret})
    found = judge(Stack([one, target, drill], NOW), configuration_of({}))
    assert {finding.rule for _, finding in found} == set(RULES)
    for _, finding in found:
        assert secret not in finding.message
        assert "400d" not in finding.message


# ------------------------------------------------------------------ configuration


def test_levels_are_said_of_all_or_of_one() -> None:
    """A rule's own counts more; what is disabled is not looked for; advisory ones are found and violate nothing."""
    stack = Stack([group(encryption=None)], NOW)
    found = judge(stack, configuration_of({"all": "advisory", "group-is-drilled": "disabled"}))
    assert {(level, finding.rule) for level, finding in found} == {
        (Level.ADVISORY, "key-is-escrowed"),
        (Level.ADVISORY, "production-has-offsite-copy"),
    }
    assert violated(found) == []
    strict = judge(stack, configuration_of({"key-is-escrowed": {"enforcementLevel": "mandatory"}}))
    assert "key-is-escrowed" in {finding.rule for finding in violated(strict)}


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ([], "JSON object"),
        ({"group-has-rpoo": "advisory"}, "group-has-rpoo"),
        ({"group-has-rpo": "sometimes"}, "group-has-rpo"),
        ({"group-has-rpo": {"enforcementLevel": "remediate"}}, "remediated"),
        ({"group-has-rpo": {"rpoMax": "soon"}}, "rpoMax"),
        ({"group-has-rpo": {"rpoMin": "1s"}}, "rpoMin"),
        ({"group-has-rpo": {"productionLabel": "production"}}, "productionLabel"),
        ({"key-is-escrowed": {"within": "1d"}}, "no settings"),
        ({"production-has-immutable-copy": {"daysMin": 0}}, "daysMin"),
        ({"all": {"rpoMax": "1d"}}, "'all' takes a level only"),
        ({"group-has-rpo": 7}, "group-has-rpo"),
        ({"group-has-rpo": {"enforcementLevel": ["mandatory"]}}, "group-has-rpo"),
    ],
)
def test_a_wrong_configuration_is_an_error_that_names_it(said: Any, names: str) -> None:
    """Nothing of it is ignored."""
    with pytest.raises(Invalid, match=re.escape(names)):
        configuration_of(said)


# ------------------------------------------------------------------ names, imports, documentation


def test_resources_are_known_by_dynamic_and_native_types_and_called_as_in_the_program() -> None:
    """Components are not resources of their own here."""
    assert kind_of("pulumi-python:dynamic/dpac:ProtectionGroup") == kind_of("dpac:backend:ProtectionGroup") == GROUP
    for other in ("dpac:index:ProtectionGroup", "pulumi-python:dynamic/dpac:Ready", "aws:s3/bucket:Bucket", "None"):
        assert kind_of(other) is None
    component = "urn:pulumi:dev::shop::dpac:index:Drill$pulumi-python:dynamic/dpac:Drill::first-drill"
    assert name_of(component, DRILL) == "first"
    assert name_of("urn:pulumi:dev::shop::dpac:backend:Drill::my-drill", DRILL) == "my-drill"


def test_rules_know_neither_pulumi_nor_other_rooms_than_the_api() -> None:
    """Only `pack` imports Pulumi, and nothing of dpac imports `pack`."""
    for path in (ROOT / "policy" / "dpac_policy").glob("*.py"):
        for name in _imports(path):
            room = name.split(".")[0]
            assert room not in ("dpac", "dpac_provider", "dpac_engine"), f"{path.name} imports {name}"
            assert path.name == "pack.py" or not room.startswith("pulumi"), f"{path.name} imports {name}"
            assert name != "dpac_policy.pack"
    for room in ("engine", "components", "provider", "api"):
        for path in (ROOT / room).rglob("*.py"):
            assert "dpac_policy.pack" not in _imports(path), path


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


DOC = (ROOT / "docs" / "policy.md").read_text()


def test_every_rule_is_documented_with_its_level_and_settings() -> None:
    """And no rule that there is not."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (advisory|mandatory) \| (.*?) \| (.*?)\|$", DOC, re.MULTILINE)
    assert [row[0] for row in rows] == list(DEFAULTS)
    for name, level, asks, settings in rows:
        assert level == DEFAULTS[name][0].value, name
        assert set(re.findall(r"`(\w+)`", settings)) == set(DEFAULTS[name][1].model_fields), name
        if name in RULES:
            assert asks.startswith(RULES[name].description.rstrip(".")), name


def test_every_setting_is_documented_with_its_default() -> None:
    """A row each."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .* \|$", DOC, re.MULTILINE))
    fields = {
        name: field
        for model in (ProductionSettings, RpoSettings, DrillSettings, ImmutableSettings)
        for name, field in model.model_fields.items()
    }
    assert rows == {name: str(field.default) for name, field in fields.items()}


def test_the_documented_configuration_is_one() -> None:
    """The example is read as it stands."""
    example = re.search(r"```json\n(.*?)```", DOC, re.DOTALL)
    assert example
    configuration_of(json.loads(example[1]))
