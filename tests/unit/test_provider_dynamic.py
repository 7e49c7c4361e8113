"""The dynamic adapter: its wire format, and that it carries answers unchanged."""

from __future__ import annotations

import base64
import pickletools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dill
import pytest
from pulumi.dynamic import CheckResult, Config, ConfigureRequest
from pulumi.dynamic.dynamic import serialize_provider
from pulumi.runtime import rpc

from dpac_api.errors import Conflict, Invalid
from dpac_provider import dynamic, resources, session
from dpac_provider.dynamic import (
    CheckpointProvider,
    DrillProvider,
    GroupProvider,
    ReadyProvider,
    ResourceProvider,
    TargetProvider,
    explain,
)
from tests.fake_site import TOKEN, FakeSite

PROVIDERS = (TargetProvider, GroupProvider, ReadyProvider, CheckpointProvider, DrillProvider)
# What stacks hold as `__provider`. A change here breaks every one of them: they could not be refreshed or destroyed.
GOLDEN = {
    "TargetProvider": "gASVLwAAAAAAAACMFWRwYWNfcHJvdmlkZXIuZHluYW1pY5SMDlRhcmdldFByb3ZpZGVylJOUKYGULg==",
    "GroupProvider": "gASVLgAAAAAAAACMFWRwYWNfcHJvdmlkZXIuZHluYW1pY5SMDUdyb3VwUHJvdmlkZXKUk5QpgZQu",
    "ReadyProvider": "gASVLgAAAAAAAACMFWRwYWNfcHJvdmlkZXIuZHluYW1pY5SMDVJlYWR5UHJvdmlkZXKUk5QpgZQu",
    "CheckpointProvider": "gASVMwAAAAAAAACMFWRwYWNfcHJvdmlkZXIuZHluYW1pY5SMEkNoZWNrcG9pbnRQcm92aWRlcpSTlCmBlC4=",
    "DrillProvider": "gASVLgAAAAAAAACMFWRwYWNfcHJvdmlkZXIuZHluYW1pY5SMDURyaWxsUHJvdmlkZXKUk5QpgZQu",
}


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.__name__)
def test_a_provider_is_pickled_as_a_reference_to_its_class(provider: type[ResourceProvider]) -> None:
    """Module path and class name and nothing else: no field, no code, so no edit of dpac makes a diff."""
    pickled = base64.b64decode(serialize_provider(provider()))
    said = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
    assert said == ["dpac_provider.dynamic", provider.__name__]
    assert len(pickled) < 70
    assert vars(provider()) == {}


def test_the_pickles_are_those_that_stacks_hold() -> None:
    """Golden bytes: what was written once can be read for ever."""
    written = {provider.__name__: serialize_provider(provider()) for provider in PROVIDERS}
    assert written == GOLDEN
    for provider in PROVIDERS:
        assert type(dill.loads(base64.b64decode(GOLDEN[provider.__name__]))) is provider


def test_type_tokens_are_those_that_stacks_and_policies_know() -> None:
    """`pulumi-python:dynamic/dpac:NAME` today, `dpac:backend:NAME` in a native plugin."""
    kinds = (resources.Target, resources.ProtectionGroup, resources.Ready, resources.Checkpoint, resources.Drill)
    assert [kind._resource_type_name for kind in kinds] == [f"dynamic/dpac:{kind.__name__}" for kind in kinds]
    assert [kind.provider for kind in kinds] == list(PROVIDERS)
    assert resources.NATIVE_MODULE == "dpac:backend"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A site that the stack's configuration names."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    site = FakeSite()
    with site.serving() as url:
        sites = f'{{"only": {{"endpoint": "{url}", "tokenFile": "{token}"}}}}'
        TargetProvider().configure(ConfigureRequest(Config({"dpac:sites": sites}, "shop")))
        yield site
    session.configure(None)


PROPS = {"kind": "filesystem", "name": "copies", "path": "/mnt/copies", "owner": "o/p/s", "__provider": "gASV"}


def test_a_target_passes_through_the_adapter(site: FakeSite) -> None:
    """Check, create, read, diff, update, delete, as Pulumi calls them; `__provider` never reaches the site."""
    provider = TargetProvider()
    checked = provider.check({}, dict(PROPS))
    assert checked.failures == []
    made = provider.create({**checked.inputs, "__provider": "gASV"})
    assert (made.id, made.outs["uid"]) == ("target/copies", site.targets["copies"].uid)
    seen = provider.read(made.id, {**made.outs, "__provider": "gASV"})
    assert (seen.id, seen.outs, seen.inputs) == (made.id, made.outs, checked.inputs)
    same = provider.diff(made.id, made.outs, {**checked.inputs, "__provider": "another"})
    assert (same.changes, same.replaces) == (False, [])
    renamed = provider.diff(made.id, made.outs, {**checked.inputs, "name": "other"})
    assert (renamed.changes, renamed.replaces, renamed.delete_before_replace) == (True, ["name"], False)
    updated = provider.update(made.id, made.outs, {**checked.inputs, "path": "/mnt/two"})
    assert updated.outs == {**made.outs, "path": "/mnt/two"}
    provider.delete(made.id, updated.outs)
    gone = provider.read(made.id, updated.outs)
    assert (gone.id, gone.outs) == ("", {})
    assert not any("gASV" in str(call.body) for call in site.calls)


def test_each_problem_is_a_failure_on_its_property_path() -> None:
    """As Pulumi's own check failures, so the CLI names the property."""
    result: CheckResult = GroupProvider().check(
        {}, {"name": "shop", "members": {"disk": {"kind": "volume", "path": "/d", "size": "1xB"}}}
    )
    assert [failure.property for failure in result.failures] == ["members.disk.size"]


def test_what_is_unknown_in_a_preview_stays_unknown() -> None:
    """The engine gets its own sentinel back, and the diff says that something changes."""
    provider = TargetProvider()
    checked = provider.check({}, {**PROPS, "path": rpc.UNKNOWN})
    assert checked.failures == []
    assert checked.inputs["path"] == rpc.UNKNOWN
    assert provider.diff("target/copies", {**PROPS}, {**checked.inputs}).changes is True


def test_an_error_of_dpac_is_reported_as_its_message_and_any_other_as_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only in a process that is the SDK's provider server, and only for errors that are meant for users."""
    import traceback

    server = ModuleType("__main__")
    server.traceback = traceback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", server)
    dynamic._report_errors_without_traceback()
    assert server.traceback is traceback  # type: ignore[attr-defined]

    server.DynamicResourceProviderServicer = object  # type: ignore[attr-defined]
    dynamic._report_errors_without_traceback()

    def reported(error: Exception) -> str:
        try:
            raise error
        except Exception:
            said: str = server.traceback.format_exc()  # type: ignore[attr-defined]
            return said

    assert reported(Conflict("in use by shop")) == "in use by shop"
    assert "Traceback" in reported(KeyError("bug"))
    assert traceback.format_exc is not server.traceback.format_exc  # type: ignore[attr-defined]


def test_the_property_is_part_of_the_message() -> None:
    """Where the backend names one, as the program calls it."""
    assert explain(Invalid("is missing", property_path="spec.members.disk.path")) == "members.disk.path: is missing"
    assert explain(Invalid("is missing")) == "is missing"
