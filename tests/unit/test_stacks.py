"""Protection by configuration alone: what a stack's file says is what the components are given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pulumi
import pytest

from setup import checkout

CONFIGURED = {
    "members": {
        "orders": {"kind": "directory", "path": "/srv/orders", "blueprint": "sqlite"},
        "disk": {"kind": "volume", "path": "/srv/disk.raw", "size": "1GiB"},
    },
    "replication": {"copies": {"to": "copies", "rpo": "5s", "retention": {"daily": 7}}, "far": {"to": "elsewhere"}},
    "journal": {"history": "24h"},
    "encryption": {"escrow": ["dpac-escrow-key"]},
    "labels": {"environment": "production"},
    "ready": {"timeout": "1m"},
    "drill": {"rto": "15m", "triggers": ["2026-11"]},
}


class Recorder(pulumi.runtime.Mocks):
    """Remembers every resource that a program declares."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.made[args.name] = args.inputs
        return f"{args.name}-id", {**args.inputs, "member_outputs": {"disk": {"nbd_uri": "nbd+unix://x"}}}

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        return {}


@pytest.fixture
def recorder() -> Recorder:
    """A Pulumi engine that makes nothing."""
    made = Recorder()
    pulumi.runtime.set_mocks(made, preview=False)
    return made


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, as Pulumi imports it: from the folder of the program."""
    monkeypatch.syspath_prepend(str(checkout.ROOT / "stacks"))
    import declared

    yield declared
    sys.modules.pop("declared", None)


@pytest.fixture
def programs(declared: Any) -> Iterator[Any]:
    """The module that knows the programs."""
    import programs

    yield programs
    for name in ("programs", "primary"):
        sys.modules.pop(name, None)


def test_a_stack_declares_what_its_configuration_says(recorder: Recorder, declared: Any) -> None:
    """Targets, members, legs and journal arrive at the provider, under the names they have in the file."""

    @pulumi.runtime.test
    def program() -> None:
        declared.declare({"copies": {"path": "/mnt/copies"}}, {"shop": CONFIGURED})

    program()
    assert recorder.made["copies-target"]["path"] == "/mnt/copies"
    group = recorder.made["shop-group"]
    assert group["members"] == CONFIGURED["members"]
    assert group["replication"] == {
        "copies": {"mode": "async", "target": "copies", "rpo": "5s", "retention": {"daily": 7}},
        "far": {"mode": "async", "target": "elsewhere"},
    }
    for word in ("journal", "encryption", "labels"):
        assert group[word] == CONFIGURED[word]
    assert recorder.made["shop-ready"]["timeout"] == "1m"
    drill = recorder.made["shop-drill-drill"]
    assert (drill["group"], drill["rto"], drill["triggers"]) == ("shop", "15m", ["2026-11"])


def test_a_stack_declares_a_bucket_by_the_words_of_its_component(recorder: Recorder, declared: Any) -> None:
    """What has a bucket is an S3Target."""

    @pulumi.runtime.test
    def program() -> None:
        declared.declare({"cloud": {"bucket": "shop-copies", "credentials": "profile:backup"}}, {})

    program()
    made = recorder.made["cloud-target"]
    assert (made["kind"], made["bucket"], made["credentials"]) == ("s3", "shop-copies", "profile:backup")


def test_a_stack_declares_a_sync_leg_by_its_mode(recorder: Recorder, declared: Any) -> None:
    """The words of `dpac.Sync`; another mode is a mistake that names its place."""
    group = {"members": {"disk": {"kind": "volume", "path": "/srv/disk.raw"}}}

    @pulumi.runtime.test
    def program() -> None:
        declared.declare({}, {"shop": {**group, "replication": {"a": {"to": "x", "mode": "sync", "on_loss": "stop"}}}})

    program()
    leg = recorder.made["shop-group"]["replication"]["a"]
    assert (leg["mode"], leg["on_loss"]) == ("sync", "stop")
    with pytest.raises(declared.Mistake, match=r"replication\.a\.mode must be one of async, sync"):
        declared.declare({}, {"shop": {**group, "replication": {"a": {"to": "x", "mode": "soon"}}}})


def test_a_relative_path_begins_at_the_root_of_the_project(recorder: Recorder, declared: Any) -> None:
    """So that one file serves every checkout; the stack's site is that of whatever names none."""

    @pulumi.runtime.test
    def program() -> None:
        volume = {"kind": "volume", "path": ".dpac/data/d.raw", "size": "1MiB"}
        declared.declare(
            {"copies": {"path": ".dpac/copies"}, "far": {"path": "/mnt/far", "site": "far"}},
            {"shop": {"members": {"d": volume}}},
            site="fra",
        )

    program()
    assert recorder.made["copies-target"]["path"] == f"{checkout.ROOT}/.dpac/copies"
    assert recorder.made["shop-group"]["members"]["d"]["path"] == f"{checkout.ROOT}/.dpac/data/d.raw"
    assert [recorder.made[name]["site"] for name in ("copies-target", "far-target", "shop-group")] == [
        "fra",
        "far",
        "fra",
    ]


def test_a_stack_runs_the_program_it_asks_for_or_is_called_as(programs: Any) -> None:
    """The setting counts before the stack's name."""
    assert programs.choose(None, "primary") is programs.PROGRAMS["primary"]
    assert programs.choose("primary", "shop") is programs.PROGRAMS["primary"]


@pytest.mark.parametrize(("asked", "stack"), [(None, "shop"), ("primry", "primary")])
def test_an_unknown_program_is_an_error_that_lists_those_there_are(
    asked: str | None, stack: str, programs: Any
) -> None:
    """And names what was asked for, by the setting or by the stack's name."""
    with pytest.raises(pulumi.RunError, match=rf"'{asked or stack}'.*there is: primary"):
        programs.choose(asked, stack)


@pytest.mark.parametrize(
    ("targets", "groups", "message"),
    [
        ({"copies": {}}, {}, "dpac:targets.copies has neither path nor bucket"),
        ({"copies": {"path": "/x", "size": 1}}, {}, "dpac:targets.copies.size is not known; it may have path"),
        ([], {}, "dpac:targets must be a dictionary"),
        ({}, {"shop": "x"}, "dpac:groups.shop must be a dictionary"),
        ({}, {"shop": {"member": {}}}, "dpac:groups.shop.member is not known; it may have members"),
        ({}, {"shop": {"members": {"a": {"kind": "disk"}}}}, r"dpac:groups.shop.members.a.kind must be one of"),
        ({}, {"shop": {"members": {"a": {"kind": "volume"}}}}, r"dpac:groups.shop.members.a is not complete.*'path'"),
        ({}, {"shop": {"replication": {"a": {"rpo": "1s"}}}}, "dpac:groups.shop.replication.a.to is missing"),
        ({}, {"shop": {"journal": {"hystory": "1h"}}}, "dpac:groups.shop.journal.hystory is not known"),
    ],
)
def test_a_mistake_in_the_configuration_names_its_place(
    targets: Any, groups: Any, message: str, recorder: Recorder, declared: Any
) -> None:
    """As a message of Pulumi's, not as a traceback."""
    with pytest.raises(pulumi.RunError, match=message):
        declared.declare(targets, groups)
