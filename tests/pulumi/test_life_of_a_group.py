"""A group's life under the real CLI and a real site: declared, changed, drifted, adopted, destroyed, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pulumi.automation as auto
import pytest

from tests.pulumi.conftest import Shop
from tests.pulumi.writing import Writing

pytestmark = pytest.mark.pulumi


def test_up_protects_and_a_second_up_is_empty(shop: Shop) -> None:
    """Ready waits, the drill passes, the export is the volume's URI; then up and refresh find nothing to do."""
    shop.program(
        'ready = dpac.Ready("ready", group=group, until="protected", timeout="1m")',
        'drill = dpac.Drill("first", group=group, rto="1m", opts=pulumi.ResourceOptions(depends_on=[ready]))',
        'mark = dpac.Checkpoint("mark", group=group, tag="v1", opts=pulumi.ResourceOptions(depends_on=[drill]))',
        'pulumi.export("disk", group.members["disk"].nbd_uri)',
        'pulumi.export("passed", drill.passed)',
        'pulumi.export("mark", mark.checkpoint)',
    )
    outputs = shop.stack.up().outputs

    assert outputs["disk"].value == shop.group().members["disk"].nbd_uri
    assert outputs["passed"].value is True
    shop.stack.up(expect_no_changes=True)
    shop.stack.refresh(expect_no_changes=True)
    shop.stack.up(expect_no_changes=True)
    with shop.backend.client() as client:
        assert client.group_status(shop.name).protected
    shop.until(lambda: shop.marked("v1") == outputs["mark"].value, "the marked checkpoint is at the target")
    shop.stack.refresh(expect_no_changes=True)


def test_state_holds_no_secret(shop: Shop) -> None:
    """Neither the token nor the endpoint is in `pulumi stack export`, with secrets shown or not."""
    shop.program()
    shop.stack.up()
    assert shop.backend.endpoint.token_file is not None
    token = shop.backend.endpoint.token_file.read_text().strip()
    for exported in (shop.stack.exported(), shop.stack.exported(show_secrets=True)):
        assert shop.name in exported
        assert token not in exported
        assert shop.backend.endpoint.url not in exported


def _retention(shop: Shop) -> dict[str, str]:
    return {"replication": shop.legs(daily=31)}


def _member(shop: Shop) -> dict[str, str]:
    return {"members": shop.members(f'"logs": dpac.Volume("{shop.data}/logs.raw", size="8MiB")')}


def _target(shop: Shop) -> dict[str, str]:
    target = f'dpac.FilesystemTarget("{shop.name}-more", path="{shop.folder}/more")'
    return {"replication": shop.legs(f'"more": dpac.Async(to={target}, rpo="30s")')}


@pytest.mark.parametrize(
    ("change", "previewed"),
    [
        (_retention, {"-group": {"replication.copies.retention.daily": (30, 31)}}),
        (
            _member,
            {
                "-group": {
                    "members.logs.kind": (None, "volume"),
                    "members.logs.path": (None, "DATA/logs.raw"),
                    "members.logs.size": (None, "8MiB"),
                }
            },
        ),
        (_target, {"-more": None, "-more-target": None, "-group": "replication.more."}),
    ],
    ids=["retention", "member", "target"],
)
def test_a_change_is_previewed_exactly_and_applied_live(
    shop: Shop, change: Callable[[Shop], dict[str, str]], previewed: dict[str, object]
) -> None:
    """The preview shows that and nothing else; a client writes on, and is checkpointed, while it is applied."""
    shop.program()
    shop.stack.up()
    shop.until_protected()
    before = shop.group()

    shop.program(**change(shop))
    steps = shop.stack.preview()
    assert set(steps) == {shop.name + suffix for suffix in previewed}
    for suffix, expected in previewed.items():
        step = steps[shop.name + suffix]
        changes = {
            path: tuple(value.replace(str(shop.data), "DATA") if isinstance(value, str) else value for value in pair)
            for path, pair in step.changes().items()
        }
        if isinstance(expected, dict):
            assert (step.operation, changes) == ("update", expected)
        elif isinstance(expected, str):
            assert step.operation == "update"
            assert changes
            assert all(path.startswith(expected) for path in changes)
        else:
            assert step.operation == "create"

    with Writing(before.members["disk"].nbd_uri) as client:
        began = datetime.now(UTC)
        shop.stack.up()
        ended = datetime.now(UTC)
        assert client.wrote_after(ended), "the client could not write on"
        after = shop.group()
        assert (after.uid, after.epoch, after.generation) == (before.uid, before.epoch, before.generation + 1)
        shop.until(lambda: any(began < time < ended for time in shop.checkpoint_times()), "checkpoints of meanwhile")
    shop.until_protected()
    shop.stack.up(expect_no_changes=True)


def test_a_change_by_the_cli_is_found_by_refresh_and_undone_by_up(shop: Shop) -> None:
    """Refresh shows what somebody set, the preview shows that the program differs, `up` makes it the program's."""
    shop.program()
    shop.stack.up()
    shop.apply_by_cli(lambda spec: spec["replication"]["copies"].update(rpo="1m"))
    shop.apply_by_cli(lambda spec: spec.update(on_destroy="expire"))

    with pytest.raises(auto.CommandError, match="no changes were expected but changes occurred"):
        shop.stack.refresh(expect_no_changes=True)
    steps = shop.stack.preview()
    assert set(steps) == {f"{shop.name}-group"}
    assert steps[f"{shop.name}-group"].changes() == {
        "on_destroy": ("expire", "retain"),
        "replication.copies.rpo": ("1m", "15s"),
    }
    shop.stack.up()
    assert (shop.group().spec.replication["copies"].rpo, shop.group().spec.on_destroy) == ("15s", "retain")
    shop.stack.refresh(expect_no_changes=True)


def test_a_group_deleted_by_the_cli_is_found_and_resumed(shop: Shop) -> None:
    """Refresh drops it from state, because that very site says so; `up` resumes it with its history."""
    shop.program()
    shop.stack.up()
    shop.until_protected()
    uid = shop.group().uid
    shop.backend.dpac("group", "delete", shop.name)

    shop.stack.refresh()
    assert f"{shop.name}-group" not in shop.stack.resources()
    steps = shop.stack.preview()
    assert {name: step.operation for name, step in steps.items()} == {f"{shop.name}-group": "create"}
    shop.stack.up()
    assert shop.group().uid == uid


def test_what_the_cli_made_is_adopted_only_when_the_program_says_so(shop: Shop) -> None:
    """First a conflict that says how; with adopt=True it keeps its uid and is the stack's."""
    spec = {"members": {"files": {"kind": "directory", "path": str(shop.data / "orders")}}}
    shop.backend.dpac("group", "apply", "-f", "-", stdin=json.dumps({"name": shop.name, "spec": spec}))
    uid = shop.group().uid
    arguments = {"members": f'{{"files": dpac.Directory("{shop.data}/orders")}}', "replication": "{}"}

    shop.program(**arguments)
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.up()
    assert "adopt=True" in str(caught.value)
    assert "Traceback" not in str(caught.value)

    shop.program(**arguments, adopt="True")
    shop.stack.up()
    assert (shop.group().uid, str(shop.group().owner)) == (uid, f"organization/{shop.name}/test")
    shop.program(**arguments)
    shop.stack.up(expect_no_changes=True)


def test_destroy_keeps_recovery_points_and_up_resumes_them(shop: Shop) -> None:
    """The same uid, and checkpoints from before the destroy are there after the next up."""
    mark = 'dpac.Checkpoint("mark", group=group, tag="before")'
    wait = 'ready = dpac.Ready("ready", group=group, timeout="1m")'
    shop.program(wait, mark)
    shop.stack.up()
    uid = shop.group().uid
    shop.until(lambda: shop.marked("before") is not None, "the marked checkpoint is at the target")
    marked = shop.marked("before")

    shop.stack.destroy()
    assert shop.group(retained=True).lifecycle == "retained"
    assert shop.stack.resources() == {}

    shop.program(wait)
    shop.stack.up()
    assert shop.group().uid == uid
    assert shop.marked("before") == marked
    shop.stack.up(expect_no_changes=True)


def test_a_target_in_use_refuses_to_go_and_names_its_groups(shop: Shop) -> None:
    """Conflict, not a traceback; the target stays in state and at the site."""
    shop.program()
    shop.stack.up()
    shop.stack.write("")
    group = shop.stack.resources()[f"{shop.name}-group"]["urn"]
    shop.stack.cli("state", "delete", group, "--yes")
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.up()
    assert f"is used by {shop.name}" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert f"{shop.name}-copies-target" in shop.stack.resources()


def test_a_renamed_stack_keeps_its_group(shop: Shop) -> None:
    """Only the owner changes, in place."""
    shop.program()
    shop.stack.up()
    uid = shop.group().uid
    shop.stack.rename("production")
    steps = shop.stack.preview()
    assert {name: step.operation for name, step in steps.items()} == {
        f"{shop.name}-group": "update",
        f"{shop.name}-copies-target": "update",
    }
    assert steps[f"{shop.name}-group"].changes() == {
        "owner": (f"organization/{shop.name}/test", f"organization/{shop.name}/production")
    }
    shop.stack.up()
    assert (shop.group().uid, str(shop.group().owner)) == (uid, f"organization/{shop.name}/production")
    shop.stack.up(expect_no_changes=True)


def test_a_group_that_is_not_ready_stays_and_the_next_up_goes_on(shop: Shop) -> None:
    """Without a leg it is never protected: the message says so; with one, the same stack goes through."""
    wait = 'dpac.Ready("ready", group=group, until="protected", timeout="%s")'
    shop.program(wait % "2s", replication="{}")
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.up()
    assert "has no leg" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert f"{shop.name}-group" in shop.stack.resources()

    shop.program(wait % "1m")
    shop.stack.up()
    with shop.backend.client() as client:
        assert client.group_status(shop.name).protected


def test_pulumis_own_options_behave(shop: Shop) -> None:
    """An alias renames without replacing, `protect` keeps from destroying."""
    shop.program()
    shop.stack.up()
    uid = shop.group().uid
    alias = f'pulumi.ResourceOptions(protect=True, aliases=[pulumi.Alias(name="{shop.name}")])'
    shop.stack.write(
        (shop.stack.folder / "__main__.py")
        .read_text()
        .replace("import pulumi\nimport dpac\n", "")
        .replace(f'ProtectionGroup("{shop.name}",', f'ProtectionGroup("renamed", name="{shop.name}", opts={alias},')
    )
    assert shop.stack.preview() == {}
    shop.stack.up()
    assert set(shop.stack.resources()) >= {"renamed", "renamed-group"}
    assert shop.group().uid == uid
    with pytest.raises(auto.CommandError, match="protected"):
        shop.stack.destroy()
    assert shop.group().lifecycle == "active"
