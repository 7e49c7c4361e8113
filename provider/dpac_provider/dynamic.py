"""The dynamic provider: what Pulumi pickles by reference and calls. Thin: every decision is a handler's.

**The module path and the class names are a wire format**: each stack's state holds them. They never change, and the
classes hold no fields, so that an edit of dpac makes no diff in anybody's stack.
"""

from __future__ import annotations

import sys
import traceback
from types import SimpleNamespace
from typing import Any, ClassVar, ParamSpec, TypeVar

from pulumi import dynamic

from dpac_api.errors import DpacError
from dpac_provider import session
from dpac_provider.checkpoint import CheckpointHandler
from dpac_provider.codec import decode, encode
from dpac_provider.drill import DrillHandler
from dpac_provider.group import GroupHandler
from dpac_provider.handler import Handler
from dpac_provider.ready import ReadyHandler
from dpac_provider.target import TargetHandler

CONFIG_KEY = "dpac:sites"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class ResourceProvider(dynamic.ResourceProvider):
    """Carries Pulumi's calls to one handler and its answers back."""

    handler: ClassVar[type[Handler[Any]]]

    def configure(self, req: dynamic.ConfigureRequest) -> None:
        """Take the stack's sites; called in the provider's process only, before any other call."""
        session.configure(req.config.get(CONFIG_KEY))
        _report_errors_without_traceback()

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> dynamic.CheckResult:
        """Each problem is a failure of its own property, so Pulumi names it."""
        inputs, problems = self.handler().check(decode(news))
        failures = [dynamic.CheckFailure(problem.property_path, problem.reason) for problem in problems]
        return dynamic.CheckResult(encode(inputs), failures)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Inputs against state; the backend is not asked."""
        change = self.handler().diff(decode(_olds), decode(_news))
        return dynamic.DiffResult(
            changes=bool(change.changed), replaces=change.replaces, delete_before_replace=change.delete_before_replace
        )

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Make it."""
        made = self.handler().create(decode(props))
        return dynamic.CreateResult(made.id, encode(made.outputs))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """How it is now, as outputs and as inputs; an empty id if its very site says that it is gone."""
        seen = self.handler().read(id_, decode(props))
        if seen is None:
            return dynamic.ReadResult("", {})
        return dynamic.ReadResult(id_, encode(seen.outputs), inputs=encode(seen.inputs))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        """Make it so; all outputs, because Pulumi keeps only what is returned."""
        return dynamic.UpdateResult(encode(self.handler().update(_id, decode(_olds), decode(_news))))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Let go of it."""
        self.handler().delete(_id, decode(_props))


class TargetProvider(ResourceProvider):
    """Serves `Target`."""

    handler = TargetHandler


class GroupProvider(ResourceProvider):
    """Serves `ProtectionGroup`."""

    handler = GroupHandler


class ReadyProvider(ResourceProvider):
    """Serves `Ready`."""

    handler = ReadyHandler


class CheckpointProvider(ResourceProvider):
    """Serves `Checkpoint`."""

    handler = CheckpointHandler


class DrillProvider(ResourceProvider):
    """Serves `Drill`."""

    handler = DrillHandler


def explain(error: DpacError) -> str:
    """What Pulumi shows for an error of dpac; the backend's `spec.members` are the program's `members`."""
    if error.property_path is None:
        return error.message
    return f"{error.property_path.removeprefix('spec.')}: {error.message}"


def _report_errors_without_traceback() -> None:
    """Let the SDK's provider process report an error of dpac by its message.

    It answers every exception with `traceback.format_exc()` and offers no other way, so in that process, and only
    there, its name `traceback` stands for one that knows dpac's errors. Everything else stays a traceback.
    """
    server = sys.modules.get("__main__")
    if getattr(server, "traceback", None) is not traceback or not hasattr(server, "DynamicResourceProviderServicer"):
        return

    def format_exc() -> str:
        error = sys.exc_info()[1]
        return explain(error) if isinstance(error, DpacError) else traceback.format_exc()

    server.traceback = SimpleNamespace(format_exc=format_exc)  # type: ignore[union-attr]
