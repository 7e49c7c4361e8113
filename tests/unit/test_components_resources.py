"""Components under Pulumi's mocks, whose resources are made by the real handlers at a site in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime.mocks import MockMonitor

import dpac
from dpac.arguments import Mistake
from dpac_api import escrow_keys
from dpac_provider import resources, session
from tests.fake_site import TOKEN, FakeSite

BACKEND = {
    f"pulumi-python:{kind._resource_type_name}": kind.provider.handler for kind in resources.Resource.__subclasses__()
}


class Monitor(MockMonitor):
    """Keeps each registration as the engine would see it."""

    def __init__(self, mocks: Mocks) -> None:
        super().__init__(mocks)
        mocks.requests = self.requests = {}
        mocks.outputs = self.outputs = {}

    def RegisterResource(self, request: Any) -> Any:
        self.requests[request.name] = request
        return super().RegisterResource(request)

    def RegisterResourceOutputs(self, request: Any) -> Any:
        self.outputs[request.urn.rsplit("::", 1)[1]] = set(request.outputs)
        return super().RegisterResourceOutputs(request)


class Mocks(pulumi.runtime.Mocks):
    """Makes dpac's resources by their handlers; what a preview would not know is not answered."""

    def __init__(self, preview: bool) -> None:
        self.preview = preview
        self.requests: dict[str, Any] = {}
        self.outputs: dict[str, set[str]] = {}
        self.inputs: dict[str, dict[str, Any]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.inputs[args.name] = given = {key: value for key, value in args.inputs.items() if key != "__provider"}
        if args.typ not in BACKEND:
            return "", given
        handler = BACKEND[args.typ]()
        inputs, problems = handler.check(given)
        assert problems == []
        if self.preview:
            return "", inputs
        made = handler.create(inputs)
        return made.id, made.outputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """A site that the environment names."""
    (tmp_path / "token").write_text(TOKEN)
    site = FakeSite()
    with site.serving() as url:
        monkeypatch.setenv("DPAC_ENDPOINT", url)
        monkeypatch.setenv("DPAC_ENDPOINT_FRA", url)
        monkeypatch.setenv("DPAC_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("DPAC_TOKEN_FILE_FRA", str(tmp_path / "token"))
        yield site
    session.configure(None)


def run(program: Callable[[], Any], *, preview: bool = False) -> tuple[Mocks, Any]:
    """What a program registered, and the value of what it returns; that the value was awaited is made sure."""
    mocks, seen = Mocks(preview), []
    pulumi.runtime.set_mocks(
        mocks, project="shop", stack="dev", preview=preview, monitor=Monitor(mocks), organization="acme"
    )

    @pulumi.runtime.test
    def awaited() -> pulumi.Output[None]:
        async def keep(output: pulumi.Output[Any]) -> None:
            seen.append((await output.future(with_unknowns=True), await output.is_known()))

        return pulumi.Output.from_input(keep(pulumi.Output.from_input(program())))

    awaited()
    assert seen, "the program's output was never awaited"
    value, known = seen[0]
    return mocks, value if known else "unknown"


def _quickstart(**changes: Any) -> dpac.ProtectionGroup:
    copies = dpac.FilesystemTarget("copies", path="/mnt/copies")
    arguments: dict[str, Any] = {
        "members": {
            "orders": dpac.Directory("/data/orders", blueprint="sqlite"),
            "disk": dpac.Volume("/data/disk.raw", size="64MiB"),
        },
        "replication": {"copies": dpac.Async(to=copies, rpo="15s", retention=dpac.Retention(daily=30))},
        "journal": dpac.Journal(history="24h", size_max="2GiB"),
    }
    return dpac.ProtectionGroup("quickstart", **{**arguments, **changes})


def test_the_quickstart_is_declared_and_wired(site: FakeSite) -> None:
    """The issue's program: the site holds what it says, and its export is the volume's URI."""

    def program() -> Any:
        group = _quickstart()
        ready = dpac.Ready("ready", group=group, until="protected", timeout="5m")
        drill = dpac.Drill("first", group=group, rto="1m", opts=pulumi.ResourceOptions(depends_on=[ready]))
        return pulumi.Output.all(group.members["disk"].nbd_uri, group.members["orders"].nbd_uri, drill.passed)

    _, (disk, orders, passed) = run(program)
    assert disk == "nbd://127.0.0.1:10809/quickstart/disk"
    assert orders == ""
    assert passed is True
    spec = site.groups["quickstart"].spec
    assert spec.replication["copies"].retention.daily == 30
    assert (spec.journal.history, spec.journal.size_max) == ("1d", "2GiB")
    assert str(site.groups["quickstart"].owner) == "acme/shop/dev"


def test_labels_and_escrow_keys_may_be_outputs_and_reach_the_site(site: FakeSite) -> None:
    """As plain values do."""
    public = escrow_keys.public_text(bytes(range(32)))

    def program() -> Any:
        return _quickstart(
            labels={"environment": pulumi.Output.from_input("production")},
            encryption=dpac.Encryption(escrow=[pulumi.Output.from_input(public)]),
        ).uid

    run(program)
    spec = site.groups["quickstart"].spec
    assert (spec.labels, spec.encryption.escrow) == ({"environment": "production"}, [public])


def test_every_component_has_one_child_below_it_and_registers_its_outputs() -> None:
    """`dpac:index:NAME` with `dpac:backend` resources named after it; outputs are registered."""

    def program() -> Any:
        group = _quickstart()
        mark = dpac.Checkpoint("mark", group=group, tag="v1")
        return pulumi.Output.all(
            dpac.Drill("drill", group=group).passed, mark.checkpoint, dpac.Ready("r", group=group).urn
        )

    mocks, _ = run(program)
    children = {
        "copies": ("FilesystemTarget", "copies-target", "Target"),
        "quickstart": ("ProtectionGroup", "quickstart-group", "ProtectionGroup"),
        "mark": ("Checkpoint", "mark-checkpoint", "Checkpoint"),
        "drill": ("Drill", "drill-drill", "Drill"),
        "r": ("Ready", "r-ready", "Ready"),
    }
    for name, (kind, child, backend) in children.items():
        assert mocks.requests[name].type == f"dpac:index:{kind}"
        assert mocks.requests[child].type == f"pulumi-python:dynamic/dpac:{backend}"
        assert mocks.requests[child].parent.endswith(f"::{name}")
        assert name in mocks.outputs
    assert mocks.outputs["quickstart"] >= {"name", "uid", "members", "active_site", "epoch"}


def test_arguments_may_be_outputs(site: FakeSite) -> None:
    """Paths, sizes and counts that other resources give."""

    def program() -> Any:
        path = pulumi.Output.from_input("/data/disk.raw")
        group = _quickstart(
            members={"disk": dpac.Volume(path, size=pulumi.Output.from_input("1GiB"))},
            on_destroy=pulumi.Output.from_input("expire"),
        )
        return group.uid

    run(program)
    spec = site.groups["quickstart"].spec
    assert (spec.members["disk"].size, spec.on_destroy) == ("1GiB", "expire")


def test_in_a_preview_names_are_known_and_outputs_are_not() -> None:
    """So the preview of a new leg to a new target shows exactly that, and asks no backend."""

    def program() -> Any:
        return _quickstart().members["disk"].nbd_uri

    mocks, value = run(program, preview=True)
    assert value == "unknown"
    assert mocks.inputs["quickstart-group"]["replication"]["copies"]["target"] == "copies"


def test_a_group_waits_for_its_targets_and_acts_wait_for_their_group() -> None:
    """Dependencies, though names are plain text."""

    def program() -> Any:
        group = _quickstart()
        return dpac.Drill("drill", group=group).passed

    mocks, _ = run(program)
    assert any(urn.endswith("::copies-target") for urn in mocks.requests["quickstart-group"].dependencies)
    assert any(urn.endswith("::quickstart-group") for urn in mocks.requests["drill-drill"].dependencies)


def test_options_reach_the_child() -> None:
    """Those that Pulumi inherits and those that it does not."""

    def program() -> Any:
        other = dpac.FilesystemTarget("other", path="/mnt/other")
        options = pulumi.ResourceOptions(
            protect=True,
            retain_on_delete=True,
            ignore_changes=["journal"],
            depends_on=[other],
        )
        return _quickstart(opts=options).uid

    mocks, _ = run(program)
    child = mocks.requests["quickstart-group"]
    assert child.protect
    assert child.retainOnDelete
    assert list(child.ignoreChanges) == ["journal"]
    assert any(urn.endswith("::other-target") for urn in child.dependencies)


def test_targets_are_given_as_components_names_or_what_was_found(site: FakeSite) -> None:
    """All three make the same leg."""

    def declare() -> Any:
        return dpac.FilesystemTarget("shared", path="/mnt/shared", name="shared").uid

    run(declare)

    def program() -> Any:
        legs = {"a": dpac.Async(to="shared"), "b": dpac.Async(to=dpac.get_target("shared"))}
        return dpac.ProtectionGroup("shop", members={"d": dpac.Directory("/d/d")}, replication=legs).uid

    run(program)
    assert {leg.target for leg in site.groups["shop"].spec.replication.values()} == {"shared"}


def test_what_changes_by_itself_is_asked_for(site: FakeSite) -> None:
    """get_group and get_checkpoints, given a group that is only made by this very update."""

    def program() -> Any:
        group = _quickstart()
        mark = dpac.Checkpoint("mark", group=group, tag="v1", hold=True, hold_reason="audit")
        found = mark.checkpoint.apply(lambda _: dpac.get_checkpoints("quickstart", limit=5, tag="v1"))
        return pulumi.Output.all(dpac.get_group(group), found)

    _, (view, found) = run(program)
    assert view.status.protected
    assert view.uid == site.groups["quickstart"].uid
    assert [(held.tags, held.held, held.held_reason) for held in found] == [(["v1"], True, "audit")]


def test_nothing_is_asked_about_a_group_that_is_yet_to_be_made(site: FakeSite) -> None:
    """In a preview, get_group of a declared group is unknown."""
    _, value = run(lambda: dpac.get_group(_quickstart()), preview=True)
    assert value == "unknown"
    assert site.calls == []


def test_a_group_at_a_named_site_takes_its_acts_there(site: FakeSite) -> None:
    """Ready, Checkpoint, Drill and get_group follow the group's site."""

    def program() -> Any:
        fra = dpac.Site("fra")
        copies = dpac.FilesystemTarget("there", path="/mnt/copies", site=fra)
        group = _quickstart(site=fra, replication={"copies": dpac.Async(to=copies)})
        return pulumi.Output.all(
            dpac.Drill("d", group=group).passed, dpac.get_group(group), dpac.Ready("r", group=group).urn
        )

    mocks, _ = run(program)
    assert {mocks.inputs[name]["site"] for name in ("there-target", "quickstart-group", "d-drill", "r-ready")} == {
        "fra"
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"members": {"disk": "/data/disk.raw"}}, r"members\.disk must be dpac\.Volume"),
        ({"members": ["disk"]}, "members must be a dictionary"),
        ({"replication": {"copies": "copies"}}, r"replication\.copies must be dpac\.Async"),
        ({"journal": {"history": "1h"}}, r"journal must be dpac\.Journal"),
        ({"site": "fra"}, r"site must be dpac\.Site"),
        (
            {"replication": {"copies": dpac.Async(to="copies", retention={"daily": 3})}},
            r"retention must be dpac\.Retention",
        ),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_in_the_program_names_the_property(changes: dict[str, Any], says: str) -> None:
    """As an error that Pulumi shows without a traceback."""
    with pytest.raises(Mistake, match=says):
        run(lambda: _quickstart(**changes).uid)
    assert issubclass(Mistake, pulumi.RunError)


def test_asking_for_what_is_not_there_is_a_message() -> None:
    """get_target of a name that the site does not know."""
    with pytest.raises(Mistake, match=r"get_target\('nowhere'\)"):
        run(lambda: dpac.get_target("nowhere"))
