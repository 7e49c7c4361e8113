"""The rules as a Pulumi policy pack: a policy a rule, and one for what is not known yet. Thin: every decision is a rule's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import json_format  # type: ignore[import-untyped]
from pulumi.runtime.proto import analyzer_pb2
from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyConfigSchema,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
    policy,
)
from pulumi_policy.proxy import UnknownValueError

from dpac_api.errors import Invalid
from dpac_policy.configuration import Configuration, Settings
from dpac_policy.declared import GROUP, UNKNOWN, Declared, Stack, kind_of, name_of
from dpac_policy.rules import DEFAULTS, NOT_KNOWN_YET, RULES, Rule, configuration_of, judge

NAME = "dpac"


class Pack:
    """The policies, and the configuration that the CLI gives before it asks them anything."""

    def __init__(self) -> None:
        self.configuration: Configuration = configuration_of({})

    def policies(self) -> list[Policy]:
        """A policy a rule, and one for what is not known yet."""
        return [*(self._policy(rule) for rule in RULES.values()), self._not_known_yet()]

    def _policy(self, rule: Rule) -> Policy:
        common: dict[str, Any] = {
            "name": rule.name,
            "description": rule.description,
            "enforcement_level": EnforcementLevel(rule.level.value),
            "config_schema": _schema(rule.settings),
        }
        if rule.needs_stack:
            return StackValidationPolicy(validate=lambda args, report: self._judge_stack(rule, args, report), **common)
        return ResourceValidationPolicy(validate=lambda args, report: self._judge_one(rule, args, report), **common)

    def _not_known_yet(self) -> Policy:
        def validate(args: StackValidationArgs, report: ReportViolation) -> None:
            for _, finding in judge(_stack(args), self.configuration):
                if not finding.known:
                    report(finding.message, finding.resource.urn)

        return StackValidationPolicy(
            name=NOT_KNOWN_YET,
            description="What no rule can judge before the update.",
            enforcement_level=EnforcementLevel(DEFAULTS[NOT_KNOWN_YET][0].value),
            validate=validate,
        )

    def _judge_one(self, rule: Rule, args: ResourceValidationArgs, report: ReportViolation) -> None:
        declared = _declared(args.resource_type, args.urn, args.props)
        if declared is not None and declared.kind == GROUP:
            self._report(rule, declared, Stack([declared], datetime.now(UTC)), report)

    def _judge_stack(self, rule: Rule, args: StackValidationArgs, report: ReportViolation) -> None:
        stack = _stack(args)
        for group in stack.of_kind(GROUP):
            self._report(rule, group, stack, report)

    def _report(self, rule: Rule, group: Declared, stack: Stack, report: ReportViolation) -> None:
        for finding in rule.findings(group, stack, self.configuration.settings(rule.name)):
            if finding.known:
                report(finding.message, group.urn)


def _schema(settings: type[Settings]) -> PolicyConfigSchema | None:
    # Plain JSON: the SDK puts it into a protobuf Struct.
    properties = json.loads(json.dumps(settings.model_json_schema().get("properties", {})))
    return PolicyConfigSchema(properties=properties) if properties else None


def _stack(args: StackValidationArgs) -> Stack:
    found = (_declared(resource.resource_type, resource.urn, resource.props) for resource in args.resources)
    return Stack([declared for declared in found if declared is not None], datetime.now(UTC))


def _declared(resource_type: str, urn: str, properties: Mapping[str, Any]) -> Declared | None:
    kind = kind_of(resource_type)
    return None if kind is None else Declared(kind, name_of(urn, kind), urn, plain(properties))


def plain(value: Any) -> Any:
    """Properties without the SDK's proxies, which raise where a value is not known: that becomes `UNKNOWN`."""
    if isinstance(value, Mapping):
        return {key: _item(value, key) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_item(value, index) for index in range(len(value))]
    return value


def _item(container: Any, key: Any) -> Any:
    try:
        return plain(container[key])
    except UnknownValueError:
        return UNKNOWN


def configured(request: Any) -> Any:
    """The configuration that the CLI sends, with every rule's level, as the JSON that it was made from."""
    levels = analyzer_pb2.EnforcementLevel
    return {
        rule: {
            "enforcementLevel": levels.Name(said.enforcementLevel).lower(),
            **json_format.MessageToDict(said.properties),
        }
        for rule, said in request.policyConfig.items()
    }


def _checking(pack: Pack) -> type[Any]:
    """The SDK's server, which also refuses a configuration of rules and settings that there are not.

    The SDK hands each policy its own part only and forgets the rest, so a misspelt rule would be ignored.
    """

    class Servicer(policy._PolicyAnalyzerServicer):
        def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:
            try:
                pack.configuration = configuration_of(configured(request))
            except Invalid as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The policy pack's configuration: {error.message}")
            return super().Configure(request, context)  # type: ignore[no-untyped-call]

    return Servicer


def serve() -> None:
    """Serve the pack to the Pulumi CLI that started this process; returns when it ends."""
    pack = Pack()
    policy._PolicyAnalyzerServicer = _checking(pack)  # type: ignore[misc]
    PolicyPack(NAME, pack.policies())


__all__ = ["NAME", "Pack", "configured", "plain", "serve"]
