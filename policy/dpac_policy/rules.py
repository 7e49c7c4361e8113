"""The rules: pure functions from what is declared to findings. Neither Pulumi nor a backend is known here.

A finding never holds a property's value, because a policy pack is shown secrets in plain text: it names the resource,
the property and the rule's own bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dpac_api.quantities import Duration
from dpac_policy.configuration import (
    Configuration,
    DrillSettings,
    ImmutableSettings,
    Level,
    ProductionSettings,
    RpoSettings,
    Settings,
    configure,
)
from dpac_policy.declared import DRILL, GROUP, TARGET, UNKNOWN, Declared, Stack, at


@dataclass(frozen=True)
class Finding:
    """A violation, or, if it is not `known`, what would have to be known to tell."""

    rule: str
    resource: Declared
    property_path: str
    problem: str
    fix: str
    known: bool = True

    @property
    def message(self) -> str:
        """All of it: the resource, the rule, what is wrong, how to correct it."""
        what = f"{self.resource.kind} {self.resource.name!r}, {self.property_path}"
        return f"{what}: {self.problem} [{self.rule}]\n  Fix: {self.fix}"


@dataclass(frozen=True)
class _Said:
    """What a rule says of one group; the rule's name and the group are added to it."""

    property_path: str
    problem: str
    fix: str
    known: bool = True


@dataclass(frozen=True)
class Rule:
    """One rule about groups."""

    name: str
    description: str
    level: Level
    settings: type[Settings]
    needs_stack: bool
    """It reads other resources than the group."""
    judge: Callable[[Declared, Stack, Any], Iterator[_Said]]

    def findings(self, group: Declared, stack: Stack, settings: Settings) -> list[Finding]:
        """What the rule finds in one group."""
        return [
            Finding(self.name, group, said.property_path, said.problem, said.fix, said.known)
            for said in self.judge(group, stack, settings)
        ]


def _not_known(property_path: str, what: str) -> _Said:
    return _Said(
        property_path,
        f"it is not known yet {what}",
        "nothing; the update, or `dpac policy check` after it, tells.",
        known=False,
    )


def _legs(group: Declared) -> dict[str, Any] | None:
    """The legs by name; None if they are not known."""
    legs = group.at("replication")
    return None if legs is UNKNOWN else dict(legs or {})


def _is_production(group: Declared, settings: ProductionSettings) -> bool | None:
    """Whether its label says so; None if that is not known."""
    key, _, value = settings.productionLabel.partition("=")
    found = group.at("labels", key)
    return None if found is UNKNOWN else bool(found == value)


def _seconds(value: Any) -> float | None:
    """A duration as declared; None if it is not known, or none: then its own check refuses it."""
    try:
        return Duration.parse(value).seconds if isinstance(value, str) else None
    except ValueError:
        return None


# ------------------------------------------------------------------ what every group has


def _group_has_rpo(group: Declared, _: Stack, settings: RpoSettings) -> Iterator[_Said]:
    legs = _legs(group)
    if legs is None:
        yield _not_known("replication", "which legs it has")
        return
    if not legs:
        yield _Said(
            "replication",
            "it has no leg, so nothing of it outlives its host and it has no RPO.",
            'add a leg: replication={"copies": dpac.Async(to=TARGET, rpo="15s")}.',
        )
    production = _is_production(group, settings)
    for name, leg in legs.items():
        yield from _leg_has_rpo(f"replication.{name}.rpo", at(leg, "rpo"), production, settings)


def _leg_has_rpo(path: str, rpo: Any, production: bool | None, settings: RpoSettings) -> Iterator[_Said]:
    if rpo is None:
        yield _Said(path, "the leg has no RPO.", f'give it one of {settings.rpoMax} at most: rpo="15s".')
        return
    seconds = _seconds(rpo)
    if seconds is None:
        yield _not_known(path, "which RPO the leg has")
    elif seconds > settings.rpoMax.seconds:
        yield _Said(path, f"the leg's RPO is longer than {settings.rpoMax}.", f"make it {settings.rpoMax} or less.")
    elif seconds > settings.productionRpoMax.seconds and production is not False:
        most = settings.productionRpoMax
        if production is None:
            yield _not_known("labels", f"whether it is a production group, whose legs' RPO may be {most} at most")
        else:
            yield _Said(
                path, f"it is a production group, and the leg's RPO is longer than {most}.", f"make it {most} or less."
            )


def _key_is_escrowed(group: Declared, _: Stack, __: Settings) -> Iterator[_Said]:
    # Only a site can say that a copy of its own key was confirmed; programs declare escrow keys.
    if group.at("key_escrowed") is True:
        return
    keys = group.at("encryption", "escrow")
    if keys is UNKNOWN or (keys and all(key is UNKNOWN for key in keys)):
        yield _not_known("encryption.escrow", "which escrow keys it has")
    elif not keys:
        yield _Said(
            "encryption.escrow",
            "no escrow key opens its recovery points: if the site is lost, so are they.",
            "run `dpac key generate-escrow --to FILE`, keep FILE off the backend's host, and declare what it printed: "
            'encryption=dpac.Encryption(escrow=["dpac-escrow-..."]).',
        )


def _group_is_drilled(group: Declared, stack: Stack, settings: DrillSettings) -> Iterator[_Said]:
    drills = stack.of_kind(DRILL)
    mine = [drill for drill in drills if _names(drill, "group", group)]
    if any(_age(drill, stack.now) <= timedelta(seconds=settings.within.seconds) for drill in mine):
        return
    if not mine and any(_may_name(drill, "group", group) for drill in drills):
        yield _not_known("drill", "of which group a declared drill is")
    elif not mine:
        yield _Said(
            "drill",
            "no drill of it is declared: nobody knows that it can be recovered.",
            f'declare one: dpac.Drill("{group.name}-drill", group=GROUP, rto="15m"), or run `dpac drill`.',
        )
    else:
        yield _Said(
            "drill",
            f"what its newest drill has proven is older than {settings.within}.",
            "run it again: change the Drill's `triggers`, or run `dpac drill`.",
        )


def _age(drill: Declared, now: datetime) -> timedelta:
    """Of what the drill has proven; 0 for one that this very update runs."""
    ran = drill.at("checkpoint_time")
    try:
        return now - datetime.fromisoformat(ran) if isinstance(ran, str) else timedelta(0)
    except (ValueError, TypeError):  # no time, or one without a zone
        return timedelta.max


def _names(one: Declared, by: str, group: Declared) -> bool:
    """Whether a resource names the group, at the same site, for certain."""
    pairs = ((one.at(by), group.at("name")), (one.at("site"), group.at("site")))
    return all(left is not UNKNOWN and left == right for left, right in pairs)


def _may_name(one: Declared, by: str, group: Declared) -> bool:
    pairs = ((one.at(by), group.at("name")), (one.at("site"), group.at("site")))
    return all(UNKNOWN in (left, right) or left == right for left, right in pairs)


def _sync_says_on_loss(group: Declared, _: Stack, __: Settings) -> Iterator[_Said]:
    for name, leg in (_legs(group) or {}).items():
        mode, on_loss = at(leg, "mode"), at(leg, "on_loss")
        path = f"replication.{name}.on_loss"
        if mode is UNKNOWN or (mode == "sync" and on_loss is UNKNOWN):
            yield _not_known(path, "what the leg does when its target is lost")
        elif mode == "sync" and on_loss is None:
            yield _Said(
                path,
                "the leg is synchronous and does not say what happens when its target is lost.",
                'choose: on_loss="async" lets the application go on without the copy, on_loss="stop" holds its writes.',
            )


# ------------------------------------------------------------------ what production groups have


def _production_is_offsite(group: Declared, stack: Stack, settings: ProductionSettings) -> Iterator[_Said]:
    production, legs = _is_production(group, settings), _legs(group)
    if production is False:
        return
    offsite = {name: _leg_is_offsite(leg, group, stack) for name, leg in (legs or {}).items()}
    if True in offsite.values():
        return
    if production is None:
        yield _not_known("labels", "whether it is a production group, which needs a copy at another place")
    elif legs is None:
        yield _not_known("replication", "which legs it has, and whether one goes to another place")
    elif unknown := [name for name, answer in offsite.items() if answer is None]:
        yield _Said(
            f"replication.{unknown[0]}.target",
            "whether its target lies at another place cannot be told: the target is not declared here, or not known yet",
            "declare the target in this stack, or let `dpac policy check` ask the site after the update.",
            known=False,
        )
    else:
        yield _Said(
            "replication",
            "it is a production group, and none of its legs goes to another place: a fire takes data and copies.",
            "add a leg to a target at another place: dpac.S3Target(...), or dpac.FilesystemTarget(..., offsite=True) for a "
            "mount of a remote file system.",
        )


def _leg_is_offsite(leg: Any, group: Declared, stack: Stack) -> bool | None:
    """Whether the leg's target is declared to lie elsewhere; None if that cannot be known."""
    wanted = at(leg, "target")
    if wanted is UNKNOWN:
        return None
    for target in stack.of_kind(TARGET):
        if target.at("name") == wanted and target.at("site") == group.at("site"):
            offsite = target.at("offsite")
            return None if offsite is UNKNOWN else bool(offsite)
    return None


def _production_is_immutable(group: Declared, _: Stack, settings: ImmutableSettings) -> Iterator[_Said]:
    production, legs = _is_production(group, settings), _legs(group)
    if production is False:
        return
    held = [at(leg, "retention", "immutable_for") for leg in (legs or {}).values()]
    if any((_seconds(value) or 0) >= settings.daysMin * 86_400 for value in held):
        return
    if production is None:
        yield _not_known("labels", "whether it is a production group, which needs an immutable copy")
    elif legs is None or UNKNOWN in held:
        yield _not_known("replication", "for how long its copies are immutable")
    else:
        yield _Said(
            "replication.*.retention.immutable_for",
            f"it is a production group, and none of its copies is immutable for {settings.daysMin} days: whoever takes over "
            "the host can delete them.",
            f'add a leg to a bucket with object_lock, and give its retention immutable_for="{settings.daysMin}d" or more.',
        )


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "group-has-rpo",
            "Every group has a leg, and every leg an RPO within bounds.",
            Level.MANDATORY,
            RpoSettings,
            False,
            _group_has_rpo,
        ),
        Rule(
            "key-is-escrowed",
            "Every group's recovery points can be opened when its site is lost.",
            Level.MANDATORY,
            Settings,
            False,
            _key_is_escrowed,
        ),
        Rule(
            "group-is-drilled",
            "Every group's recovery is rehearsed.",
            Level.MANDATORY,
            DrillSettings,
            True,
            _group_is_drilled,
        ),
        Rule(
            "sync-says-on-loss",
            "Every synchronous leg says what happens when its target is lost.",
            Level.MANDATORY,
            Settings,
            False,
            _sync_says_on_loss,
        ),
        Rule(
            "production-has-offsite-copy",
            "Every production group has a copy at another place.",
            Level.MANDATORY,
            ProductionSettings,
            True,
            _production_is_offsite,
        ),
        Rule(
            "production-has-immutable-copy",
            "Every production group has a copy that nobody can change or delete for a time.",
            Level.MANDATORY,
            ImmutableSettings,
            False,
            _production_is_immutable,
        ),
    )
}
NOT_KNOWN_YET = "not-known-yet"
"""Under this name, with a level of its own, goes what no rule could judge."""
DEFAULTS: Mapping[str, tuple[Level, type[Settings]]] = {
    **{name: (rule.level, rule.settings) for name, rule in RULES.items()},
    NOT_KNOWN_YET: (Level.ADVISORY, Settings),
}


def configuration_of(said: Any) -> Configuration:
    """The configuration that JSON says, of exactly these rules. Invalid, naming what is wrong."""
    return configure(said, DEFAULTS)


def judge(stack: Stack, configuration: Configuration) -> list[tuple[Level, Finding]]:
    """Every finding, with what it does; those of disabled rules are not looked for."""
    found: list[tuple[Level, Finding]] = []
    for group in stack.of_kind(GROUP):
        for name, rule in RULES.items():
            level = configuration.level(name)
            if level is not Level.DISABLED:
                for finding in rule.findings(group, stack, configuration.settings(name)):
                    found.append((level if finding.known else configuration.level(NOT_KNOWN_YET), finding))
    return [(level, finding) for level, finding in found if level is not Level.DISABLED]


def violated(found: Sequence[tuple[Level, Finding]]) -> list[Finding]:
    """The findings that fail a check."""
    return [finding for level, finding in found if level is Level.MANDATORY]
