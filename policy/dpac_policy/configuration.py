"""What a policy's configuration may say, and that it says nothing else.

The same JSON serves `pulumi --policy-pack-config FILE` and `dpac policy check --config FILE`:

    {"all": "mandatory", "group-has-rpo": {"enforcementLevel": "advisory", "rpoMax": "1h"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpac_api.errors import Invalid
from dpac_api.quantities import Duration


class Level(StrEnum):
    """What a violation does."""

    ADVISORY = "advisory"
    """It is shown."""
    MANDATORY = "mandatory"
    """It is shown, and fails the preview, the update or the check."""
    DISABLED = "disabled"
    """Nobody looks."""


class Settings(BaseModel):
    """What can be said to every rule; some know more."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ProductionSettings(Settings):
    """Of a rule that asks more of production groups."""

    productionLabel: Annotated[str, Field(pattern=r"^[^=]+=[^=]*$")] = Field(
        default="environment=production", description="The label, KEY=VALUE, that marks a production group."
    )


class RpoSettings(ProductionSettings):
    """Of `group-has-rpo`."""

    rpoMax: Duration = Field(default=Duration("1d"), description="The longest RPO that a leg may have.")
    productionRpoMax: Duration = Field(
        default=Duration("1h"), description="The longest RPO that a leg of a production group may have."
    )


class DrillSettings(Settings):
    """Of `group-is-drilled`."""

    within: Duration = Field(
        default=Duration("90d"), description="How old the newest checkpoint that a drill has proven may be."
    )


class ImmutableSettings(ProductionSettings):
    """Of `production-has-immutable-copy`."""

    daysMin: int = Field(
        default=7, ge=1, le=36_500, description="For how many days, at least, a copy must be immutable."
    )


class Configuration:
    """Levels and settings of the rules."""

    def __init__(self, levels: Mapping[str, Level], settings: Mapping[str, Settings]) -> None:
        self._levels = levels
        self._settings = settings

    def level(self, rule: str) -> Level:
        """What a violation of the rule does."""
        return self._levels[rule]

    def settings(self, rule: str) -> Any:
        """The rule's settings."""
        return self._settings[rule]


def configure(said: Any, defaults: Mapping[str, tuple[Level, type[Settings]]]) -> Configuration:
    """A configuration from JSON, on top of each rule's default level and settings. Invalid, naming what is wrong."""
    if not isinstance(said, Mapping):
        raise Invalid("The policy's configuration must be a JSON object from rules to levels or settings.")
    unknown = sorted(set(said) - set(defaults) - {"all"})
    if unknown:
        raise Invalid(
            f"There is no rule {unknown[0]!r} to configure; there is {', '.join(sorted(defaults))}, and 'all'.",
            property_path=unknown[0],
        )
    levels = {rule: level for rule, (level, _) in defaults.items()}
    if "all" in said:
        every, rest = _level_and_settings("all", said["all"])
        if rest:
            raise Invalid("'all' takes a level only; say settings of each rule.", property_path="all")
        levels = dict.fromkeys(defaults, every) if every is not None else levels
    settings: dict[str, Settings] = {}
    for rule, (_, model) in defaults.items():
        own, rest = _level_and_settings(rule, said.get(rule, {}))
        levels[rule] = own or levels[rule]
        settings[rule] = parse_settings(rule, model, rest)
    return Configuration(levels, settings)


def _level_and_settings(rule: str, said: Any) -> tuple[Level | None, dict[str, Any]]:
    held = {"enforcementLevel": said} if isinstance(said, str) else said
    if not isinstance(held, Mapping):
        raise Invalid(f"{rule}: write a level, or an object of settings.", property_path=rule)
    rest = {key: value for key, value in held.items() if key != "enforcementLevel"}
    if "enforcementLevel" not in held:
        return None, rest
    try:
        return Level(held["enforcementLevel"]), rest
    except ValueError:
        raise Invalid(
            f"{rule}: the enforcement level must be advisory, mandatory or disabled (nothing is remediated here).",
            property_path=rule,
        ) from None


def parse_settings(rule: str, model: type[Settings], said: Mapping[str, Any]) -> Settings:
    """A rule's settings. Invalid, naming the first that is wrong."""
    try:
        return model.model_validate(dict(said))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        if detail["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields) or "no settings"
            raise Invalid(f"{rule}: there is no setting {where!r}; there is {known}.", property_path=rule) from None
        reason = detail["msg"].removeprefix("Value error, ")
        raise Invalid(f"{rule}: {where}: {reason}.", property_path=rule) from None
