"""The handlers against a site in memory: what they ask of it, and what they refuse to conclude."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dpac_api.client import Client
from dpac_api.errors import Conflict, DpacError, NotFound, TimedOut, Unreachable, Unrecoverable, WrongSite
from dpac_api.models import Condition, FilesystemTargetSpec, Group, Owner, S3TargetSpec
from dpac_api.resolve import Endpoint
from dpac_provider.checkpoint import CheckpointHandler
from dpac_provider.drill import DrillHandler
from dpac_provider.group import GroupHandler
from dpac_provider.handler import Connect, Handler
from dpac_provider.ready import ReadyHandler
from dpac_provider.target import TargetHandler
from tests.fake_site import TOKEN, FakeSite

ME = "organization/shop/dev"
OTHER = "organization/shop/prod"
TARGET = {"kind": "filesystem", "name": "copies", "path": "/mnt/copies", "owner": ME}
GROUP = {
    "name": "shop",
    "owner": ME,
    "members": {"disk": {"kind": "volume", "path": "/d/disk.raw", "size": "64MiB"}},
    "replication": {"copies": {"mode": "async", "target": "copies", "rpo": "15s"}},
}


@pytest.fixture
def site() -> FakeSite:
    """A site in memory."""
    return FakeSite()


@pytest.fixture
def connect(site: FakeSite, tmp_path: Path) -> Iterator[Connect]:
    """Clients of that site, which make sure who answers, as the provider's do."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    clients = []

    def to(name: str | None, uid: str | None) -> Client:
        endpoint = Endpoint(url=f"http://{name or 'site'}.test", source="a test", token_file=token)
        client = Client(endpoint, site_uid=uid, wire=site.wire(), retry_seconds=0.01)
        clients.append(client)
        client.site()
        return client

    yield to
    for client in clients:
        client.close()


@pytest.fixture
def group(connect: Connect) -> GroupHandler:
    """The group's handler, with a target made."""
    TargetHandler(connect).create(_checked(TargetHandler(connect), TARGET))
    return GroupHandler(connect)


def _checked(handler: Handler[Any], given: dict[str, Any]) -> dict[str, Any]:
    inputs, problems = handler.check(given)
    assert problems == []
    return inputs


def _with(given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**given, **changes}


# ------------------------------------------------------------------ groups


def test_a_group_is_created_with_an_id_of_its_name_and_outputs_to_wire(group: GroupHandler, site: FakeSite) -> None:
    """The outputs hold the inputs, the site's uid and where to connect, and nothing that changes by itself."""
    inputs = _checked(group, GROUP)
    made = group.create(inputs)
    assert made.id == "group/shop"
    assert {key: made.outputs[key] for key in inputs} == inputs
    assert made.outputs.keys() - inputs.keys() == set(group.output_names)
    assert made.outputs["site_uid"] == site.site_uid
    assert made.outputs["member_outputs"]["disk"]["nbd_uri"].startswith("nbd://")


def test_nothing_differs_right_after_create_read_or_update(group: GroupHandler) -> None:
    """Create, read and update each return outputs that the same inputs do not differ from."""
    inputs = _checked(group, GROUP)
    made = group.create(inputs)
    assert group.diff(made.outputs, inputs).changed == []
    seen = group.read(made.id, made.outputs)
    assert seen is not None
    assert (seen.outputs, seen.inputs) == (made.outputs, inputs)
    assert group.update(made.id, made.outputs, inputs) == made.outputs


def test_a_diff_names_what_changed_and_asks_nobody(site: FakeSite) -> None:
    """Without a backend: `diff` and `check` never call."""

    def nobody(_: str | None, __: str | None) -> Client:
        raise AssertionError("asked the backend")

    group = GroupHandler(nobody)
    old = _checked(group, GROUP)
    new = _checked(group, _with(GROUP, journal={"history": "48h"}))
    assert group.diff(old, new).changed == ["journal"]
    assert group.diff(old, _checked(group, _with(GROUP, adopt=True))).changed == []
    assert site.calls == []


def test_another_name_is_another_group_and_the_old_one_goes_first(group: GroupHandler) -> None:
    """Both would capture the same paths."""
    change = group.diff(_checked(group, GROUP), _checked(group, _with(GROUP, name="shop2")))
    assert (change.replaces, change.delete_before_replace) == (["name"], True)


def test_state_of_an_older_release_lacks_a_default_and_does_not_differ(group: GroupHandler) -> None:
    """A property that a release adds, with its default, is no change."""
    old = _checked(group, GROUP)
    del old["journal"]["spool_max"]
    assert group.diff(old, _checked(group, GROUP)).changed == []


def test_a_change_made_outside_is_seen_as_inputs(group: GroupHandler, site: FakeSite, connect: Connect) -> None:
    """After a refresh, the program's inputs differ from what somebody else has set."""
    inputs = _checked(group, GROUP)
    made = group.create(inputs)
    spec = site.groups["shop"].spec
    connect(None, None).put_group("shop", spec.model_copy(update={"on_destroy": "purge"}))
    seen = group.read(made.id, made.outputs)
    assert seen is not None
    assert seen.inputs["on_destroy"] == "purge"
    assert group.diff(seen.outputs, inputs).changed == ["on_destroy"]


def test_only_a_404_of_that_very_site_means_gone(group: GroupHandler, site: FakeSite) -> None:
    """Gone there is gone; another site, an empty one, silence, or a proxy's 404 is an error."""
    made = group.create(_checked(group, GROUP))
    there = site.site_uid
    site.groups.clear()
    assert group.read(made.id, made.outputs) is None

    site.site_uid = "f" * 32
    with pytest.raises(WrongSite):
        group.read(made.id, made.outputs)
    site.site_uid = there
    for fault in (404, 502, Unreachable("nobody")):
        site.faults = [fault] * 50
        with pytest.raises(DpacError) as caught:
            group.read(made.id, made.outputs)
        assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize("verb", ["read", "update", "delete"])
def test_the_site_is_compared_before_anything_is_done(group: GroupHandler, site: FakeSite, verb: str) -> None:
    """At another site nothing is read as this resource, changed or deleted."""
    made = group.create(_checked(group, GROUP))
    site.site_uid = "f" * 32
    before = dict(site.groups)
    site.calls.clear()
    arguments = {"read": (made.outputs,), "update": (made.outputs, made.outputs), "delete": (made.outputs,)}
    with pytest.raises(WrongSite):
        getattr(group, verb)(made.id, *arguments[verb])
    assert site.groups == before
    assert {call.path for call in site.calls} == {"/v1/site"}


def test_a_group_of_another_owner_is_adopted_only_when_asked(group: GroupHandler, site: FakeSite) -> None:
    """Conflict names the owner; adopt=True takes it over with its uid."""
    theirs = group.create(_checked(group, _with(GROUP, owner=OTHER)))
    with pytest.raises(Conflict, match=OTHER):
        group.create(_checked(group, GROUP))
    ours = group.create(_checked(group, _with(GROUP, adopt=True)))
    assert ours.outputs["uid"] == theirs.outputs["uid"]
    assert site.groups["shop"].owner == Owner(project="shop", stack="dev")


def test_a_renamed_stack_keeps_its_group(group: GroupHandler, site: FakeSite) -> None:
    """An update rewrites the owner that this stack wrote last."""
    made = group.create(_checked(group, GROUP))
    renamed = _checked(group, _with(GROUP, owner="organization/shop/development"))
    assert group.diff(made.outputs, renamed).changed == ["owner"]
    outputs = group.update(made.id, made.outputs, renamed)
    assert str(site.groups["shop"].owner) == "organization/shop/development"
    assert group.diff(outputs, renamed).changed == []


@pytest.mark.parametrize("refreshed", [False, True])
def test_a_group_that_another_stack_adopted_is_left_alone(group: GroupHandler, site: FakeSite, refreshed: bool) -> None:
    """Neither an update nor a delete takes it back, refreshed before or not; adopt=True does."""
    made = group.create(_checked(group, GROUP))
    GroupHandler(group._connect).create(_checked(group, _with(GROUP, owner=OTHER, adopt=True)))
    old = made.outputs
    if refreshed:
        seen = group.read(made.id, old)
        assert seen is not None
        assert seen.inputs["owner"] == OTHER
        old = seen.outputs
    with pytest.raises(Conflict, match=OTHER):
        group.update(made.id, old, _checked(group, GROUP))
    with pytest.raises(Conflict, match="pulumi state delete"):
        group.delete(made.id, old)
    assert site.deleted_with == []
    group.update(made.id, old, _checked(group, _with(GROUP, adopt=True)))
    assert str(site.groups["shop"].owner) == ME


def test_deleting_keeps_recovery_points_unless_told_otherwise(group: GroupHandler, site: FakeSite) -> None:
    """`retain` is sent by default, and what the program said in any case; the next create resumes the same group."""
    made = group.create(_checked(group, GROUP))
    group.delete(made.id, made.outputs)
    assert site.deleted_with == ["retain"]
    assert group.read(made.id, made.outputs) is None
    again = group.create(_checked(group, GROUP))
    assert again.outputs["uid"] == made.outputs["uid"]

    purging = group.update(made.id, again.outputs, _checked(group, _with(GROUP, on_destroy="purge")))
    group.delete(made.id, purging)
    assert site.deleted_with == ["retain", "purge"]


def test_deleting_what_is_gone_is_done(group: GroupHandler, site: FakeSite) -> None:
    """A destroy after somebody else's delete goes through."""
    made = group.create(_checked(group, GROUP))
    site.groups.clear()
    group.delete(made.id, made.outputs)


def test_an_update_of_what_is_gone_makes_it_again(group: GroupHandler, site: FakeSite) -> None:
    """It heals, and the new uid is in the outputs."""
    made = group.create(_checked(group, GROUP))
    site.groups.clear()
    outputs = group.update(made.id, made.outputs, _checked(group, GROUP))
    assert outputs["uid"] == site.groups["shop"].uid != made.outputs["uid"]


def test_the_same_site_under_another_name_is_no_other_site(group: GroupHandler, site: FakeSite) -> None:
    """Naming the site changes the resource in place, and only if it is the same site."""
    made = group.create(_checked(group, GROUP))
    named = _checked(group, _with(GROUP, site="fra"))
    change = group.diff(made.outputs, named)
    assert (change.changed, change.replaces) == (["site"], [])
    assert group.update(made.id, made.outputs, named)["site"] == "fra"


# ------------------------------------------------------------------ targets


def test_a_target_in_use_refuses_to_go_and_names_its_groups(group: GroupHandler, connect: Connect) -> None:
    """Conflict, with the group's name, and the target stays."""
    group.create(_checked(group, GROUP))
    target = TargetHandler(connect)
    outputs = target.create(_checked(target, TARGET)).outputs
    with pytest.raises(Conflict, match="shop"):
        target.delete("target/copies", outputs)
    assert target.read("target/copies", outputs) is not None


def test_a_target_lives_and_goes(connect: Connect, site: FakeSite) -> None:
    """Create, read, change, adopt, delete."""
    target = TargetHandler(connect)
    inputs = _checked(target, TARGET)
    made = target.create(inputs)
    assert made.id == "target/copies"
    seen = target.read(made.id, made.outputs)
    assert seen is not None
    assert (seen.inputs, seen.outputs) == (inputs, made.outputs)
    moved = _checked(target, _with(TARGET, path="/mnt/other"))
    assert target.diff(made.outputs, moved).changed == ["path"]
    outputs = target.update(made.id, made.outputs, moved)
    assert site.targets["copies"].spec == FilesystemTargetSpec(path="/mnt/other")
    with pytest.raises(Conflict):
        target.create(_checked(target, _with(TARGET, owner=OTHER)))
    target.delete(made.id, outputs)
    assert target.read(made.id, outputs) is None


def test_a_bucket_is_a_target_of_the_same_resource(connect: Connect, site: FakeSite) -> None:
    """One handler for every kind; what is not given has the model's default, and nothing differs right after."""
    target = TargetHandler(connect)
    inputs = _checked(target, {"kind": "s3", "name": "copies", "bucket": "shop-copies", "owner": ME})
    made = target.create(inputs)
    assert site.targets["copies"].spec == S3TargetSpec(bucket="shop-copies")
    assert (inputs["storage_class"], inputs["credentials"], inputs["offsite"]) == ("STANDARD", "default", True)
    assert target.diff(made.outputs, inputs).changed == []
    elsewhere = _checked(target, {**inputs, "credentials": "profile:backup"})
    assert target.diff(made.outputs, elsewhere).changed == ["credentials"]
    assert target.update(made.id, made.outputs, elsewhere)["credentials"] == "profile:backup"


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"kind": "s3", "name": "c"}, "bucket"),
        ({"kind": "s3", "name": "c", "bucket": "b-1", "path": "/x"}, "path"),
        ({"kind": "s3", "name": "c", "bucket": "b-1", "credentials": "AKIAEXAMPLE:s3cr3t"}, "credentials"),
        ({"kind": "s3", "name": "c", "bucket": "b-1", "proxy": "http://me:s3cr3t@proxy:3128"}, "proxy"),
        ({"kind": "s3", "name": "c", "bucket": "b-1", "storage_class": "DEEP_ARCHIVE"}, "storage_class"),
        ({"kind": "tape", "name": "c", "path": "/x"}, "kind"),
    ],
)
def test_a_mistake_in_a_target_names_its_property_and_repeats_no_secret(
    connect: Connect, wrong: dict[str, Any], path: str
) -> None:
    """A key where a reference belongs is refused in the preview, unseen."""
    _, problems = TargetHandler(connect).check(wrong)
    assert [problem.property_path for problem in problems] == [path]
    assert "s3cr3t" not in problems[0].reason


def test_a_target_that_became_another_kind_by_the_same_name_outlives_the_old_resource(
    connect: Connect, site: FakeSite
) -> None:
    """Pulumi makes the S3Target first and then deletes the FilesystemTarget: that must not forget the new one."""
    target = TargetHandler(connect)
    old = target.create(_checked(target, TARGET))
    target.create(_checked(target, {"kind": "s3", "name": "copies", "bucket": "shop-copies", "owner": ME}))
    target.delete(old.id, old.outputs)
    assert site.targets["copies"].spec == S3TargetSpec(bucket="shop-copies")


# ------------------------------------------------------------------ ready


class Clock:
    """Time that passes only by sleeping; `at` things happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: dict[float, Any] = {}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [due for due in self.at if due <= self.now]:
            self.at.pop(due)()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Virtual time."""
    return Clock()


def _ready(connect: Connect, clock: Clock) -> ReadyHandler:
    return ReadyHandler(connect, sleep=clock.sleep, monotonic=clock.monotonic)


@pytest.mark.parametrize("until", ["seeded", "protected"])
def test_ready_returns_once_it_is_so(
    group: GroupHandler, site: FakeSite, connect: Connect, clock: Clock, until: str
) -> None:
    """It waits while it is not, rides through a silence, and takes as long as it takes."""
    group.create(_checked(group, GROUP))
    setattr(site, until, False)
    clock.at = {60: lambda: site.faults.extend([503] * 20), 120: lambda: setattr(site, until, True)}
    ready = _ready(connect, clock)
    made = ready.create(_checked(ready, {"group": "shop", "until": until, "timeout": "5m"}))
    assert made.id == f"ready/shop/{until}"
    assert 120 <= clock.now < 180


def test_ready_does_not_believe_a_status_of_the_declaration_before(
    group: GroupHandler, site: FakeSite, connect: Connect, clock: Clock
) -> None:
    """A protected group whose newest declaration is not taken up yet is not ready."""
    group.create(_checked(group, GROUP))
    lookup = site._get_groups

    def newer(call: Any, name: str) -> Group:
        found = lookup(call, name)
        return found.model_copy(update={"generation": 2}) if clock.now < 30 and call.path.endswith("/shop") else found

    site._get_groups = newer  # type: ignore[method-assign]
    ready = _ready(connect, clock)
    ready.create(_checked(ready, {"group": "shop"}))
    assert clock.now >= 30


def test_ready_says_what_is_missing_when_its_time_is_over(
    group: GroupHandler, site: FakeSite, connect: Connect, clock: Clock
) -> None:
    """Members, legs and conditions are named; the group stays, so the next update goes on."""
    group.create(_checked(group, GROUP))
    site.seeded = site.protected = False
    site.conditions = [
        Condition(type="TargetUnavailable", subject="leg/copies", message="disk full", since="2026-01-01T00:00:00Z")  # type: ignore[arg-type]
    ]
    ready = _ready(connect, clock)
    with pytest.raises(TimedOut) as caught:
        ready.create(_checked(ready, {"group": "shop", "timeout": "2m"}))
    for said in (
        "after 2m",
        "member disk",
        "leg copies to copies has 25%",
        "TargetUnavailable",
        "disk full",
        "pulumi up",
    ):
        assert said in caught.value.message
    assert "shop" in site.groups

    site.seeded = True
    with pytest.raises(TimedOut, match=r"lags 99s, its RPO is 15s"):
        ready.create(_checked(ready, {"group": "shop", "timeout": "2m"}))


@pytest.mark.parametrize("kind", ["TargetMissing", "TargetDenied", "TargetUnfit"])
def test_ready_does_not_wait_long_for_what_only_a_person_can_mend(
    group: GroupHandler, site: FakeSite, connect: Connect, clock: Clock, kind: str
) -> None:
    """A minute, in case the same update mends it; then it fails with that condition. One that comes and goes is waited out."""
    group.create(_checked(group, GROUP))
    site.protected = False
    unmounted = Condition(type=kind, subject="leg/copies", message="Mount /backup.", since="2026-01-01T00:00:00Z")  # type: ignore[arg-type]
    site.conditions = [unmounted]
    clock.at = {30: lambda: site.conditions.clear(), 31: lambda: site.conditions.append(unmounted)}
    ready = _ready(connect, clock)
    with pytest.raises(
        DpacError, match=rf"by waiting: {kind} \(leg/copies\): Mount /backup\. The group is declared"
    ) as caught:
        ready.create(_checked(ready, {"group": "shop", "timeout": "1h"}))
    assert not isinstance(caught.value, TimedOut)
    assert 90 <= clock.now < 100


def test_ready_of_a_group_that_is_not_there_fails_at_once(connect: Connect, clock: Clock) -> None:
    """There is nothing to wait for."""
    ready = _ready(connect, clock)
    with pytest.raises(NotFound):
        ready.create(_checked(ready, {"group": "shop"}))
    assert clock.now == 0


# ------------------------------------------------------------------ checkpoints, drills


def test_a_checkpoint_is_taken_in_create_and_recognised_later(
    group: GroupHandler, site: FakeSite, connect: Connect
) -> None:
    """Its id is in the resource's id; reading it changes nothing."""
    group.create(_checked(group, GROUP))
    checkpoint = CheckpointHandler(connect)
    inputs = _checked(checkpoint, {"group": "shop", "tag": "before-v7", "app": True, "triggers": ["v7"]})
    made = checkpoint.create(inputs)
    assert made.id == "checkpoint/shop/ck-1-1"
    assert (made.outputs["consistency"], made.outputs["available"]) == ("app", True)
    seen = checkpoint.read(made.id, made.outputs)
    assert seen is not None
    assert (seen.outputs, seen.inputs) == (made.outputs, inputs)
    checkpoint.delete(made.id, made.outputs)
    assert len(site.checkpoints["shop"]) == 1


def test_a_declared_hold_follows_its_declaration(group: GroupHandler, site: FakeSite, connect: Connect) -> None:
    """Held from the start, changed and released by updates, held again if somebody released it, released with the resource."""
    group.create(_checked(group, GROUP))
    checkpoint = CheckpointHandler(connect)
    given = {"group": "shop", "hold": True, "hold_reason": "audit", "hold_until": "2099-01-01T00:00:00Z"}
    inputs = _checked(checkpoint, given)
    made = checkpoint.create(inputs)
    held = lambda: site.checkpoints["shop"][0]  # noqa: E731
    assert (held().held, held().held_reason) == (True, "audit")
    assert held().held_until == datetime(2099, 1, 1, tzinfo=UTC)
    assert checkpoint.diff(made.outputs, inputs).changed == []

    site.checkpoints["shop"][0] = held().model_copy(update={"held": False})
    seen = checkpoint.read(made.id, made.outputs)
    assert seen is not None
    change = checkpoint.diff(seen.outputs, inputs)
    assert (change.changed, change.replaces) == (["hold", "hold_reason", "hold_until"], [])
    outputs = checkpoint.update(made.id, seen.outputs, inputs)
    assert held().held

    forever = _checked(checkpoint, {"group": "shop", "hold": True})
    assert checkpoint.diff(outputs, forever).replaces == []
    outputs = checkpoint.update(made.id, outputs, forever)
    assert (held().held_reason, held().held_until) == ("", None)
    free = _checked(checkpoint, {"group": "shop"})
    assert checkpoint.update(made.id, outputs, free)["hold"] is False
    assert not held().held
    checkpoint.update(made.id, {**outputs, **free}, forever)
    for _ in range(2):
        checkpoint.delete(made.id, outputs)
        assert not held().held


@pytest.mark.parametrize("alone", [{"hold_reason": "audit"}, {"hold_until": "2099-01-01T00:00:00Z"}])
def test_what_a_hold_is_for_needs_a_hold(alone: dict[str, str]) -> None:
    """In the preview, on its property."""
    _, problems = CheckpointHandler().check({"group": "shop", **alone})
    assert [problem.property_path for problem in problems] == list(alone)


def test_a_checkpoint_that_aged_out_is_not_taken_again(group: GroupHandler, site: FakeSite, connect: Connect) -> None:
    """One taken now is not the one from before the migration; one still on its way is not taken for dropped."""
    group.create(_checked(group, GROUP))
    checkpoint = CheckpointHandler(connect)
    inputs = _checked(checkpoint, {"group": "shop", "tag": "before-v7"})
    made = checkpoint.create(inputs)
    site.checkpoints.clear()
    taken = datetime.fromisoformat(made.outputs["time"])

    site.shipped_until = taken - timedelta(seconds=1)
    on_its_way = checkpoint.read(made.id, made.outputs)
    assert on_its_way is not None
    assert on_its_way.outputs == made.outputs

    site.shipped_until = taken + timedelta(seconds=1)
    seen = checkpoint.read(made.id, made.outputs)
    assert seen is not None
    assert seen.outputs["available"] is False
    assert checkpoint.diff(seen.outputs, inputs).changed == []
    site.groups.clear()
    assert checkpoint.read(made.id, seen.outputs) is None


@pytest.mark.parametrize("changes", [{"tag": "b"}, {"app": True}, {"triggers": ["v8"]}, {"group": "other"}])
def test_another_checkpoint_is_taken_when_its_inputs_change(changes: dict[str, Any]) -> None:
    """Each of them replaces."""
    checkpoint = CheckpointHandler()
    given = {"group": "shop", "tag": "a", "triggers": ["v7"]}
    change = checkpoint.diff(_checked(checkpoint, given), _checked(checkpoint, {**given, **changes}))
    assert change.replaces == list(changes)


def test_a_drill_runs_and_gives_its_report(group: GroupHandler, site: FakeSite, connect: Connect) -> None:
    """The key values are outputs, reading and deleting do nothing, and the same inputs do not run it again."""
    group.create(_checked(group, GROUP))
    drill = DrillHandler(connect)
    inputs = _checked(drill, {"group": "shop", "rto": "1m"})
    made = drill.create(inputs)
    assert made.id == "drill/shop/op-1"
    expected = {"rto_seconds": 2.5, "rpo_seconds": 1.0, "checkpoint": "ck-1-7", "passed": True, "from_target": "copies"}
    assert {key: made.outputs[key] for key in expected} == expected
    assert made.outputs.keys() - inputs.keys() == set(drill.output_names)
    seen = drill.read(made.id, made.outputs)
    assert seen is not None
    assert (seen.outputs, seen.inputs) == (made.outputs, inputs)
    drill.delete(made.id, made.outputs)
    assert drill.diff(made.outputs, inputs).changed == []
    assert drill.diff(made.outputs, _checked(drill, {**inputs, "triggers": [2]})).replaces == ["triggers"]
    assert drill.diff(made.outputs, _checked(drill, {**inputs, "timeout": "2h"})).changed == []
    assert len(site.operations) == 1


def test_a_drill_that_does_not_pass_fails_with_its_findings(
    group: GroupHandler, site: FakeSite, connect: Connect
) -> None:
    """The message holds each finding and says from where it recovered."""
    group.create(_checked(group, GROUP))
    site.drill_findings = ["orders.db: integrity check failed", "took 90 s, the goal is 60 s"]
    drill = DrillHandler(connect)
    with pytest.raises(Unrecoverable) as caught:
        drill.create(_checked(drill, {"group": "shop", "rto": "1m"}))
    for said in (*site.drill_findings, "ck-1-7", "'copies'"):
        assert said in caught.value.message
