"""Drills, restores and verifications through REST, with repositories in memory."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from dpac_api.errors import Corruption, Invalid, Temporary, Unreachable
from dpac_api.models import DrillReport, MemberStatus, OperationStep
from dpac_engine.control import drill_report, operations, restore_in_place
from dpac_engine.control.catalogue import Catalogue, utc
from dpac_engine.control.catalogue_operations import add_operation, note_step
from dpac_engine.control.export_probe import greet
from dpac_engine.control.rest import create_app
from dpac_engine.control.restore_journal import RestoreJournal
from dpac_engine.control.timeline import view_group
from dpac_engine.control.worker_api import RewindProgress, WorkerRewind
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.damage import Finding, LostPart, Run, Verification
from dpac_engine.core.entries import Entry, EntryType, encode_entry
from tests.unit.control_fakes import ADMIN, World

HEADERS = {"Authorization": f"Bearer {ADMIN}"}
WAIT_SECONDS = 20.0


class Stage:
    """A site with one group, whose target holds five checkpoints."""

    def __init__(self, world: World, client: TestClient) -> None:
        self.world = world
        self.client = client
        self.requests = 0
        spec = {"request_id": "request-t", "spec": world.target_spec()}
        assert client.put("/v1/targets/copies", json=spec, headers=HEADERS).status_code == 200
        spec = {"request_id": "request-g", "spec": world.group_spec()}
        assert client.put("/v1/groups/shop", json=spec, headers=HEADERS).status_code == 200
        self.repository = world.fill_repository()

    def begin(self, kind: str, **body: Any) -> dict[str, Any]:
        self.requests += 1
        body = {"request_id": f"request-{self.requests}", **body}
        answer = self.client.post(f"/v1/groups/shop/{kind}", json=body, headers=HEADERS)
        found: dict[str, Any] = answer.json()
        return found

    def finish(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The operation once it has ended."""
        deadline = time.monotonic() + WAIT_SECONDS
        while operation["phase"] in ("Pending", "Running"):
            assert time.monotonic() < deadline, operation
            threading.Event().wait(0.01)
            found = self.client.get(f"/v1/operations/{operation['id']}", headers=HEADERS)
            operation = found.json()
        return operation

    def run(self, kind: str, **body: Any) -> dict[str, Any]:
        return self.finish(self.begin(kind, **body))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    world = World(tmp_path)
    with TestClient(create_app(world.deps())) as client:
        yield Stage(world, client)


# ------------------------------------------------------------------ drill


def test_a_drill_reads_everything_checks_everything_and_signs_what_it_found(stage: Stage) -> None:
    """RPO is the checkpoint's age, RTO what it took; nothing is left behind."""
    stage.world.clock.advance(4)
    operation = stage.run("drills", at="latest", rto="1h")
    assert operation["phase"] == "Succeeded", operation
    assert {step["state"] for step in operation["steps"]} == {"done"}
    report = DrillReport.model_validate(operation["result"])
    assert report.passed
    assert (report.checkpoint, report.target, report.rpo_seconds) == ("ck-1-5", "copies", 4.0)
    assert report.members["disk"].checked_bytes == 1024
    assert report.members["orders"].checks["sqlite orders.db"] == "ok"
    drill_report.check(report)
    assert len(stage.world.greeted) == 1
    assert stage.world.worker.mounts == {}


def test_the_plan_is_journalled_before_the_first_step(stage: Stage) -> None:
    """Whoever looks knows what is still to come."""
    operation = stage.begin("drills")
    names = [step["name"] for step in operation["steps"]]
    assert names == ["choose checkpoint", "open image", "mount", "volume disk", "directory orders", "report"]
    assert {step["state"] for step in operation["steps"]} == {"pending"}
    stage.finish(operation)


@pytest.mark.parametrize("field", ["passed", "rto_seconds", "checkpoint", "findings", "members", "public_key"])
def test_a_report_that_was_changed_is_not_believed(stage: Stage, field: str) -> None:
    """Whatever was changed."""
    report = DrillReport.model_validate(stage.run("drills")["result"])
    forged = {
        "passed": False,
        "rto_seconds": 0.001,
        "checkpoint": "ck-1-1",
        "findings": ["x"],
        "members": {},
        "public_key": "A" * 43 + "=",
    }
    with pytest.raises(Corruption):
        drill_report.check(report.model_copy(update={field: forged[field]}))
    with pytest.raises(Corruption, match="another key"):
        drill_report.check(report, "B" * 43 + "=")
    with pytest.raises(Invalid, match="not signed"):
        drill_report.check(report.model_copy(update={"signature": ""}))


def test_a_damaged_block_fails_the_drill_with_a_report(stage: Stage) -> None:
    """The other member is still checked, and the report still signed."""
    stage.repository.volumes[1].damaged.add(8192)
    operation = stage.run("drills")
    assert operation["phase"] == "Failed"
    assert "block 8192" in operation["error"]
    report = DrillReport.model_validate(operation["result"])
    assert not report.passed
    assert "orders" in report.members
    drill_report.check(report)


def test_a_blueprints_finding_fails_the_drill(stage: Stage) -> None:
    """Bytes alone are not a database."""
    stage.world.recovery.checks["orders.db"] = "row 7 missing from index"
    operation = stage.run("drills")
    assert operation["phase"] == "Failed"
    assert operation["result"]["findings"] == ["member orders: sqlite orders.db: row 7 missing from index"]


def test_a_drill_that_takes_longer_than_its_rto_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it took in the finding."""
    check = stage.world.recovery.check

    def slow_check(blueprint: str, root: Path) -> dict[str, str]:
        stage.world.clock.advance(61)
        return check(blueprint, root)

    monkeypatch.setattr(stage.world.recovery, "check", slow_check)
    operation = stage.run("drills", rto="1m")
    assert operation["phase"] == "Failed"
    assert "longer than the RTO of 1m" in operation["error"]
    assert (operation["result"]["rto_goal_seconds"], operation["result"]["rto_seconds"]) == (60, 61)


def test_a_member_that_the_checkpoint_lacks_is_a_finding(stage: Stage) -> None:
    """What is not there cannot be recovered."""
    del stage.repository.members[2]
    operation = stage.run("drills")
    assert operation["phase"] == "Failed"
    assert "member orders: it is not in checkpoint ck-1-5" in operation["error"]


def test_a_drill_without_a_worker_still_reads_the_copy(stage: Stage) -> None:
    """That the exports could not be made is a finding; the rest is known all the same."""
    stage.world.worker.down = True
    operation = stage.run("drills")
    report = DrillReport.model_validate(operation["result"])
    assert not report.passed
    assert "cannot be mounted" in report.findings[0]
    assert report.members["disk"].checked_bytes == 1024


def test_a_drill_of_what_is_not_there_fails_without_a_report(stage: Stage) -> None:
    """There was nothing to rehearse."""
    operation = stage.run("drills", at="tag:none")
    assert (operation["phase"], operation["result"]) == ("Failed", {})
    assert operation["steps"][0]["state"] == "failed"
    assert operation["steps"][1]["state"] == "pending"


# ------------------------------------------------------------------ restore


def test_a_volume_is_restored_whole_and_sparse(stage: Stage) -> None:
    """Every stored byte where it was, holes where nothing was."""
    to = stage.world.root / "restored.raw"
    operation = stage.run("restores", member="disk", to=str(to), at="tag:nightly")
    assert operation["phase"] == "Succeeded", operation
    content = to.read_bytes()
    assert len(content) == 2**20
    assert content[:512] == b"boot" * 128
    assert content[8192:8704] == b"data" * 128
    assert content.count(0) == 2**20 - 1024
    assert to.stat().st_blocks * 512 < 2**19
    assert operation["result"]["bytes_written"] == 1024
    assert sorted(path.name for path in to.parent.glob(".*")) == []


def test_a_directory_is_restored_into_an_empty_folder(stage: Stage) -> None:
    """Made beforehand or not."""
    for to in (stage.world.root / "new", stage.world.root / "empty"):
        if to.name == "empty":
            to.mkdir()
        operation = stage.run("restores", member="orders", to=str(to))
        assert operation["phase"] == "Succeeded", operation
        assert {path.name for path in to.iterdir()} == {"orders.db", "note.txt"}


def test_nothing_is_ever_overwritten(stage: Stage) -> None:
    """Refused before there is an operation."""
    used = stage.world.root / "used"
    used.write_text("precious")
    answer = stage.begin("restores", member="disk", to=str(used))
    assert answer["error"]["property_path"] == "to"
    assert used.read_text() == "precious"
    assert stage.client.get("/v1/operations", headers=HEADERS).json() == []


@pytest.mark.parametrize("to", ["orders/x", "copies/x", "site/x", "nowhere/x"])
def test_a_restore_into_a_member_a_target_or_dpacs_own_folder_is_refused(stage: Stage, to: str) -> None:
    """It would be captured, or spoil copies."""
    answer = stage.begin("restores", member="disk", to=str(stage.world.root / to))
    assert answer["error"]["code"] == "invalid"


def test_a_restore_that_meets_damage_leaves_nothing(stage: Stage) -> None:
    """Whole or not at all."""
    stage.repository.volumes[1].damaged.add(8192)
    to = stage.world.root / "restored.raw"
    operation = stage.run("restores", member="disk", to=str(to))
    assert operation["phase"] == "Failed"
    assert not to.exists()
    assert list(stage.world.root.glob(".restored*")) == []


def test_a_volume_is_restored_over_an_image(stage: Stage) -> None:
    """It has the volume's bytes and size; the report tells what became of what was there."""
    to = stage.world.root / "old.raw"
    to.write_bytes(b"z" * (2**20 + 4096))
    operation = stage.run("restores", member="disk", to=str(to), over=True)
    assert operation["phase"] == "Succeeded", operation
    assert [step["name"] for step in operation["steps"]] == ["choose checkpoint", "write what differs"]
    content = to.read_bytes()
    assert (content[:512], content[8192:8704], len(content)) == (b"boot" * 128, b"data" * 128, 2**20)
    assert content.count(0) == 2**20 - 1024
    assert operation["result"]["bytes_written"] == 1024
    assert operation["result"]["bytes_zeroed"] >= 2**20 - 3 * 4096
    assert sorted(path.name for path in to.parent.glob(".*")) == []


def test_a_restore_over_an_image_that_meets_damage_says_what_it_holds(stage: Stage) -> None:
    """A part of the checkpoint, and how to go on."""
    stage.repository.volumes[1].damaged.add(8192)
    to = stage.world.root / "old.raw"
    to.write_bytes(b"z" * 2**20)
    operation = stage.run("restores", member="disk", to=str(to), over=True)
    assert operation["phase"] == "Failed"
    assert "start the same restore again" in operation["error"]


@pytest.mark.parametrize(
    ("member", "to", "what"), [("orders", "old.raw", "over"), ("disk", "missing", "to"), ("disk", "folder", "to")]
)
def test_only_volumes_are_restored_over_only_what_is_there(stage: Stage, member: str, to: str, what: str) -> None:
    """Refused before there is an operation."""
    (stage.world.root / "old.raw").write_bytes(b"z")
    (stage.world.root / "folder").mkdir()
    answer = stage.begin("restores", member=member, to=str(stage.world.root / to), over=True)
    assert answer["error"]["property_path"] == what
    assert (stage.world.root / "old.raw").read_bytes() == b"z"


def test_a_restore_of_an_unknown_member_names_those_there_were(stage: Stage) -> None:
    """Before anything begins."""
    answer = stage.begin("restores", member="tape", to=str(stage.world.root / "x"))
    assert "disk, orders" in answer["error"]["message"]


def test_a_member_goes_back_in_place_after_a_safety_checkpoint(stage: Stage) -> None:
    """Reserved first, then marked, then written; a checkpoint at the end; let go whatever happens."""
    operation = stage.run("restores", member="disk", at="ck-1-2", in_place=True)
    assert operation["phase"] == "Succeeded", operation
    asked = [call.split()[0] for call in stage.world.worker.calls]
    order = [call for call in asked if call in ("reserve", "checkpoint", "rewind", "release")]
    assert order == ["reserve", "checkpoint", "rewind", "checkpoint", "release"]
    (rewind,) = stage.world.worker.rewinds
    assert (rewind.checkpoint, rewind.safety_checkpoint, rewind.ordinal) == ("ck-1-2", "ck-1-6", 1)
    result = operation["result"]
    assert (result["checkpoint"], result["safety_checkpoint"], result["bytes_written"]) == ("ck-1-2", "ck-1-6", 512)
    tags = [held.body.tags for held in stage.repository.held[-2:]]
    assert tags == [[f"before-restore-{operation['id']}"], [f"after-restore-{operation['id']}"]]
    assert result["safety_tag"] == tags[0][0]
    assert stage.world.worker.held == {}


def test_a_member_in_use_is_left_alone_unless_it_is_forced(stage: Stage) -> None:
    """Refused before the safety checkpoint."""
    stage.world.worker.clients = 1
    refused = stage.run("restores", member="disk", in_place=True)
    assert (refused["phase"], "client is connected" in refused["error"]) == ("Failed", True)
    assert stage.world.worker.rewinds == []
    assert stage.run("restores", member="disk", in_place=True, force_disconnect=True)["phase"] == "Succeeded"


def test_nothing_is_written_before_the_safety_checkpoint_is_at_the_target(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded, and says that nothing was changed."""
    monkeypatch.setattr(restore_in_place, "SAFETY_SECONDS_MAX", 0.3)
    stage.world.worker.repository = None
    failed = stage.run("restores", member="disk", in_place=True)
    assert failed["phase"] == "Failed"
    assert "The safety checkpoint ck-1-6 was not at copies" in failed["error"]
    assert "Nothing was changed" in failed["error"]
    assert (stage.world.worker.rewinds, stage.world.worker.held) == ([], {})


def test_the_end_of_a_tail_is_not_taken_for_the_safety_checkpoint_whose_number_it_bears(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync leg's target lists the end of what it has so; what came between that end and the checkpoint would not go back."""
    real, early = stage.repository.resolve, list[str]()

    def resolve(selector: str, damages: Sequence[Any]) -> tuple[Mark, Mark | None]:
        mark, passed_over = real(selector, damages)
        if selector == "ck-1-6" and len(early) < 3:
            early.append(selector)
            assert stage.world.worker.rewinds == []
            return msgspec.structs.replace(mark, lsn=mark.lsn - 64), passed_over
        return mark, passed_over

    monkeypatch.setattr(restore_in_place, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(stage.repository, "resolve", resolve)
    operation = stage.run("restores", member="disk", at="ck-1-2", in_place=True)
    assert operation["phase"] == "Succeeded", operation
    assert len(early) == 3


def test_a_rewind_that_fails_says_how_to_go_on_and_back(stage: Stage) -> None:
    """With the checkpoint's id and the safety checkpoint's tag in the commands."""
    stage.world.worker.rewound = RewindProgress(state="failed", error="block 8192 does not match its checksum.")
    failed = stage.run("restores", member="disk", at="latest", in_place=True)
    command = "dpac restore shop --member disk --in-place --at"
    assert failed["error"].startswith("block 8192 does not match its checksum.")
    assert f"`{command} ck-1-5` finishes that" in failed["error"]
    assert f"`{command} tag:before-restore-{failed['id']}` goes back" in failed["error"]
    assert stage.world.worker.held == {}


@pytest.mark.parametrize(
    "body",
    [
        {"in_place": True, "to": "/tmp/x"},
        {},
        {"in_place": True, "paths": ["etc"]},
        {"to": "/tmp/x", "force_disconnect": True},
    ],
)
def test_in_place_or_to_a_new_path_never_both_nor_neither(stage: Stage, body: dict[str, Any]) -> None:
    """Refused before there is an operation."""
    answer = stage.begin("restores", member="disk", **body)
    assert answer["error"]["code"] == "invalid"
    assert stage.client.get("/v1/operations", headers=HEADERS).json() == []


def test_a_restore_in_place_whose_journal_tells_too_little_says_how_far_it_came(tmp_path: Path) -> None:
    """One of an earlier release: before the writing nothing was changed; after its beginning both ways are named."""
    world = World(tmp_path)
    ids: list[str] = []
    with TestClient(create_app(world.deps())) as client:
        Stage(world, client)
    with Catalogue.open(world.data / "catalogue.sqlite").write() as session:
        group = view_group(session, "shop")
        for reached in (1, 2):
            request = {"member": "disk", "at": "latest", "in_place": True}
            steps = ["choose checkpoint", "safety checkpoint", "write what differs", "checkpoint"]
            ids.append(add_operation(session, "Restore", group, request, steps, utc(world.clock.now_ns())).id)
            messages = ["ck-1-3 at copies", "ck-1-6 is at copies"]
            for index in range(reached):
                done = OperationStep(name=steps[index], state="done", message=messages[index])
                note_step(session, ids[-1], index, done)
            note_step(session, ids[-1], reached, OperationStep(name=steps[reached], state="running"))
    with TestClient(create_app(world.deps())) as client:
        found = [client.get(f"/v1/operations/{one}", headers=HEADERS) for one in ids]
        deadline = time.monotonic() + WAIT_SECONDS
        while any(answer.json()["phase"] == "Running" for answer in found):
            assert time.monotonic() < deadline
            found = [client.get(f"/v1/operations/{one}", headers=HEADERS) for one in ids]
    before, during = (answer.json()["error"] for answer in found)
    assert "Nothing was changed" in before
    assert "--at ck-1-3` finishes that" in during
    assert f"--at tag:before-restore-{ids[1]}` goes back" in during
    assert {call for call in world.worker.calls if call.startswith("release")} == {f"release {one}" for one in ids}


def cut_short(world: World, reached: int, known: dict[str, Any]) -> str:
    """A restore in place of `shop` that a restart of control interrupts in its step number `reached`; its id."""
    with TestClient(create_app(world.deps())) as client:
        Stage(world, client)
    steps = ["choose checkpoint", "safety checkpoint", "write what differs", "checkpoint"]
    with Catalogue.open(world.data / "catalogue.sqlite").write() as session:
        group = view_group(session, "shop")
        request = {"member": "disk", "at": "latest", "in_place": True}
        one = add_operation(session, "Restore", group, request, steps, utc(world.clock.now_ns())).id
        for index in range(reached):
            note_step(session, one, index, OperationStep(name=steps[index], state="done", message="ck-1-3"), known)
        note_step(session, one, reached, OperationStep(name=steps[reached], state="running"))
    return one


def ended(world: World, operation: str) -> Any:
    """The operation, once a new control process is done with it."""
    with TestClient(create_app(world.deps())) as client:
        deadline = time.monotonic() + 60.0
        while True:
            found = client.get(f"/v1/operations/{operation}", headers=HEADERS).json()
            if found["phase"] in ("Succeeded", "Failed"):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)


KNOWN = {"target": "copies", "checkpoint": "ck-1-3", "ordinal": 1, "safety_checkpoint": "ck-1-5"}


def test_a_restore_in_place_whose_worker_went_on_ends_as_the_worker_did(tmp_path: Path) -> None:
    """Control died while it wrote: the next one finds it done, and neither writes nor reserves again."""
    world = World(tmp_path)
    operation = cut_short(world, 2, KNOWN)
    world.worker.held[operation] = WorkerRewind(
        operation_id=operation, group_uid="a" * 32, ordinal=1, member="disk", target="copies", checkpoint="ck-1-3"
    )
    world.worker.rewinds.append(world.worker.held[operation])
    found = ended(world, operation)
    assert found["phase"] == "Succeeded", found
    assert (found["result"]["checkpoint"], found["result"]["safety_checkpoint"]) == ("ck-1-3", "ck-1-5")
    assert found["result"]["bytes_written"] == 512
    assert not [call for call in world.worker.calls if call.startswith("reserve")]
    assert world.worker.held == {}


def test_a_restore_in_place_whose_worker_died_is_begun_again(tmp_path: Path) -> None:
    """From a checkpoint of what the member holds by then; the first safety checkpoint stays what the report names."""
    world = World(tmp_path)
    operation = cut_short(world, 2, KNOWN)
    world.worker.members = {"disk": MemberStatus(kind="volume", state="Attached", seeded=True, size_bytes=2**40)}
    found = ended(world, operation)
    assert found["phase"] == "Succeeded", found
    asked = [call.split()[0] for call in world.worker.calls]
    order = [call for call in asked if call in ("reserve", "checkpoint", "rewind", "release")]
    assert order == ["reserve", "checkpoint", "rewind", "checkpoint", "release"]
    assert world.worker.rewinds[0].safety_checkpoint not in ("", "ck-1-5")
    assert found["result"]["safety_checkpoint"] == "ck-1-5"


@pytest.mark.parametrize("reached", [0, 1])
def test_a_restore_in_place_that_had_written_nothing_goes_on_as_if_nothing_had_been(
    tmp_path: Path, reached: int
) -> None:
    """Control died before the writing: the next one takes every step that was not done."""
    world = World(tmp_path)
    operation = cut_short(world, reached, KNOWN | {"safety_checkpoint": ""})
    found = ended(world, operation)
    assert found["phase"] == "Succeeded", found
    (rewind,) = world.worker.rewinds
    assert rewind.checkpoint == ("ck-1-3" if reached else "ck-1-5")
    assert rewind.safety_checkpoint == found["result"]["safety_checkpoint"] != ""


def test_single_files_are_restored_by_globs(stage: Stage) -> None:
    """What the globs mean and nothing else; near names if they mean nothing; a volume has no paths."""
    to = stage.world.root / "some"
    operation = stage.run("restores", member="orders", to=str(to), paths=["note*"])
    assert operation["phase"] == "Succeeded", operation
    assert [path.name for path in to.iterdir()] == ["note.txt"]
    failed = stage.run("restores", member="orders", to=str(stage.world.root / "none"), paths=["notes.txt"])
    assert failed["phase"] == "Failed"
    assert "There is: note.txt" in failed["error"]
    assert not (stage.world.root / "none").exists()
    refused = stage.begin("restores", member="disk", to=str(stage.world.root / "x"), paths=["etc"])
    assert (refused["error"]["property_path"], "has bytes and no paths" in refused["error"]["message"]) == (
        "paths",
        True,
    )


def test_files_and_differences_are_paged_and_stay_with_their_checkpoints(stage: Stage) -> None:
    """The cursor names the checkpoints, so that `latest` does not move between two pages."""
    entry = encode_entry(Entry(EntryType.FILE, 0o640, 0, 0, 10**18, size=7)).value
    stage.repository.trees[2].files = {b"a.txt": entry, b"b.txt": entry}
    first = stage.client.get("/v1/groups/shop/files?member=orders&limit=1", headers=HEADERS).json()
    assert [(item["path"], item["size_bytes"], item["mode"]) for item in first["items"]] == [("a.txt", 7, 0o640)]
    assert first["next_cursor"] == "ck-1-5:1"
    url = f"/v1/groups/shop/files?member=orders&cursor={first['next_cursor']}"
    assert [item["path"] for item in stage.client.get(url, headers=HEADERS).json()["items"]] == ["b.txt"]
    volume = stage.client.get("/v1/groups/shop/files?member=disk", headers=HEADERS)
    assert (volume.status_code, "no paths" in volume.json()["error"]["message"]) == (422, True)
    page = stage.client.get("/v1/groups/shop/difference?before=ck-1-2&limit=2", headers=HEADERS).json()
    assert (page["before"], page["after"], page["next_cursor"]) == ("ck-1-2", "ck-1-5", "ck-1-2..ck-1-5:2")
    counts = {found["member"]: (found["added"], found["removed"], found["changed"]) for found in page["members"]}
    assert counts == {"disk": (0, 0, 1), "orders": (1, 1, 1)}
    assert [(item["offset"], item["path"]) for item in page["items"]] == [(8192, None), (None, "new.txt")]
    url = f"/v1/groups/shop/difference?before=ck-1-1&member=orders&cursor={page['next_cursor']}"
    rest = stage.client.get(url, headers=HEADERS).json()
    assert rest["before"] == "ck-1-2"
    assert [(item["what"], item["path"]) for item in rest["items"]] == [("removed", "old.txt")]


# ------------------------------------------------------------------ verify


def test_a_verification_proves_checkpoints_readable(stage: Stage) -> None:
    """And every checkpoint up to there says when."""
    operation = stage.run("verifications")
    assert operation["phase"] == "Succeeded"
    assert operation["result"]["verified_through"] == {"copies": "ck-1-5"}
    page = stage.client.get("/v1/groups/shop/checkpoints", headers=HEADERS).json()
    assert all(item["targets"]["copies"]["verified_at"] for item in page["items"])
    status = stage.client.get("/v1/groups/shop/status", headers=HEADERS).json()
    assert status["legs"]["copies"]["last_verified_checkpoint"] == "ck-1-5"


def test_a_verification_names_what_is_damaged_and_whom_it_concerns(stage: Stage) -> None:
    """By object and checkpoints."""
    run = Run("ck-1-3", 3, "ck-1-5", None)
    part = LostPart("disk", [(4096, 512)], more=3)
    stage.repository.findings = [Finding("s/1", "its bytes are not those written", [run], lost=[part])]
    operation = stage.run("verifications", target="copies")
    assert operation["phase"] == "Failed"
    (finding,) = operation["result"]["findings"]
    assert finding["object"] == "s/1"
    assert finding["checkpoints"] == [{"first": "ck-1-3", "last": "ck-1-5", "open_ended": True}]
    assert finding["members"] == [
        {"member": "disk", "ranges": [{"offset": 4096, "length": 512}], "paths": [], "more": 3}
    ]
    assert operation["result"]["verified_through"] == {"copies": "ck-1-2"}


def test_known_damage_is_shown_and_gone_round_until_it_is_gone(stage: Stage) -> None:
    """Checkpoints that need it are not available, `latest` is the newest sound one, a condition says what to do."""
    stage.repository.findings = [Finding("s/1", "A bit was flipped.", [Run("ck-1-4", 4, "ck-1-5", None)])]
    stage.run("verifications")

    def available() -> dict[str, tuple[bool, bool]]:
        page = stage.client.get("/v1/groups/shop/checkpoints", headers=HEADERS).json()
        return {item["id"]: (item["targets"]["copies"]["available"], item["suspect"]) for item in page["items"]}

    def damaged() -> list[dict[str, Any]]:
        status = stage.client.get("/v1/groups/shop/status", headers=HEADERS).json()
        return [found for found in status["conditions"] if found["type"] == "TargetDamaged"]

    assert available() == {f"ck-1-{n}": (n < 4, n >= 4) for n in range(1, 6)}
    (condition,) = damaged()
    assert (condition["subject"], condition["severity"]) == ("leg/copies", "error")
    assert all(word in condition["message"] for word in ("s/1", "ck-1-4 to ck-1-5 and later ones", "dpac verify"))
    operation = stage.run("restores", member="disk", to=str(stage.world.root / "sound.raw"))
    assert operation["result"]["checkpoint"] == "ck-1-3"
    assert "passed over" in operation["steps"][0]["message"]
    named = stage.run("restores", member="disk", at="ck-1-5", to=str(stage.world.root / "named.raw"))
    assert named["result"]["checkpoint"] == "ck-1-5"
    body = {"request_id": "request-m"}
    mount = stage.client.post("/v1/groups/shop/mounts", json=body, headers=HEADERS).json()
    assert (mount["checkpoint"], "ck-1-5" in mount["note"]) == ("ck-1-3", True)
    stage.repository.dropped = {"s/1"}
    assert damaged() == []
    assert all(available().values())
    assert set(available().values()) == {(True, False)}
    stage.repository.dropped = set()
    assert damaged() != []
    stage.repository.findings = []
    assert stage.run("verifications")["phase"] == "Succeeded"
    assert damaged() == []
    assert set(available().values()) == {(True, False)}


def test_a_target_that_is_away_fails_the_verification(stage: Stage) -> None:
    """Not read is not proven."""
    stage.repository.error = Unreachable("The disk is away.")
    operation = stage.run("verifications")
    assert operation["phase"] == "Failed"
    assert "The disk is away" in operation["error"]


def test_progress_has_a_rate_and_the_time_left_while_it_runs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by whoever polls; once the step has ended it is gone."""
    monkeypatch.setattr(operations, "PROGRESS_SECONDS", 0.0)
    told, go_on = threading.Event(), threading.Event()

    def verify(progress: Any, manifest_before: int = 0) -> Verification:
        progress(100, 400)
        told.set()
        assert go_on.wait(WAIT_SECONDS)
        return Verification(1, 400, 0, [], [], None, 1)

    monkeypatch.setattr(stage.repository, "verify", verify)
    begun = stage.begin("verifications")
    assert told.wait(WAIT_SECONDS)
    seen = stage.client.get(f"/v1/operations/{begun['id']}", headers=HEADERS).json()["progress"]
    assert (seen["done_bytes"], seen["total_bytes"]) == (100, 400)
    assert seen["bytes_per_second"] > 0
    assert seen["remaining_seconds"] == pytest.approx(300 / seen["bytes_per_second"], abs=0.2)
    go_on.set()
    assert stage.finish(begun)["progress"] is None


# ------------------------------------------------------------------ restarts


def test_an_operation_that_a_restart_interrupted_is_cleaned_up_and_failed(tmp_path: Path) -> None:
    """One of which it is not on record what it restores: its output goes, and it says what to do."""
    world = World(tmp_path)
    with TestClient(create_app(world.deps())) as client:
        Stage(world, client)
    catalogue = Catalogue.open(world.data / "catalogue.sqlite")
    to = world.root / "restored.raw"
    with catalogue.write() as session:
        group = view_group(session, "shop")
        now = utc(world.clock.now_ns())
        request = {"member": "disk", "to": str(to), "at": "latest", "target": None}
        running = add_operation(session, "Restore", group, request, ["choose checkpoint", "write aside", "rename"], now)
        note_step(session, running.id, 1, OperationStep(name="write aside", state="running"))
        pending = add_operation(session, "Verify", group, {"target": None}, ["read copies", "report"], now)
        marking = add_operation(session, "Checkpoint", group, {}, ["mark"], now)
        note_step(session, marking.id, 0, OperationStep(name="mark", state="running"))
    catalogue.close()
    partial = to.parent / f".{to.name}.{running.id}.partial"
    partial.mkdir()
    (partial / "content").write_bytes(b"half")
    with TestClient(create_app(world.deps())) as client:
        stage = Stage.__new__(Stage)
        stage.client = client
        ended = stage.finish(running.model_dump(mode="json"))
        assert ended["phase"] == "Failed"
        assert "Start it again" in ended["error"]
        assert stage.finish(pending.model_dump(mode="json"))["phase"] == "Succeeded"
        assert "dpac checkpoints" in stage.finish(marking.model_dump(mode="json"))["error"]
    assert not partial.exists()
    assert not to.exists()


def test_a_restore_that_a_restart_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    """From the checkpoint that it began with, and without what its journal says is in the file."""
    world = World(tmp_path)
    with TestClient(create_app(world.deps())) as client:
        repository = Stage(world, client).repository
    catalogue = Catalogue.open(world.data / "catalogue.sqlite")
    to = world.root / "restored.raw"
    with catalogue.write() as session:
        group = view_group(session, "shop")
        request = {"member": "disk", "to": str(to), "at": "latest", "target": None}
        steps = ["choose checkpoint", "write aside", "rename"]
        running = add_operation(session, "Restore", group, request, steps, utc(world.clock.now_ns()))
        note_step(session, running.id, 1, OperationStep(name="write aside", state="running"))
    catalogue.close()
    aside = to.parent / f".{to.name}.{running.id}.partial"
    aside.mkdir()
    journal = RestoreJournal(aside / "journal")
    journal.begin(repository.held[0].id, "copies")
    journal.wrote(["s/0"])
    with (aside / "journal").open("ab") as torn:
        torn.write(b'{"type":"written","segm')
    with (aside / "content").open("wb") as file:
        file.write(b"kept" * 128)  # not what the segment holds: whoever reads it again, overwrites it
    with TestClient(create_app(world.deps())) as client:
        stage = Stage.__new__(Stage)
        stage.client = client
        ended = stage.finish(running.model_dump(mode="json"))
    assert ended["phase"] == "Succeeded", ended
    assert ended["result"]["checkpoint"] == repository.held[0].id
    assert (ended["result"]["bytes_written"], ended["result"]["bytes_kept"]) == (512, 512)
    content = to.read_bytes()
    assert (content[:512], content[8192:8704], len(content)) == (b"kept" * 128, b"data" * 128, 2**20)
    assert not aside.exists()


@pytest.mark.parametrize("moment", ["before the name", "with both names", "after the name"])
@pytest.mark.parametrize("member", ["disk", "orders"])
def test_a_restore_that_was_cut_short_at_its_end_ends(tmp_path: Path, member: str, moment: str) -> None:
    """Whole, before or after it took its name: it succeeds, and nothing is left aside."""
    world = World(tmp_path)
    with TestClient(create_app(world.deps())) as client:
        repository = Stage(world, client).repository
    catalogue = Catalogue.open(world.data / "catalogue.sqlite")
    to = world.root / "restored"
    with catalogue.write() as session:
        request = {"member": member, "to": str(to), "at": "latest", "target": None}
        steps = ["choose checkpoint", "write aside", "rename"]
        group, now = view_group(session, "shop"), utc(world.clock.now_ns())
        running = add_operation(session, "Restore", group, request, steps, now)
        note_step(session, running.id, 2, OperationStep(name="rename", state="running"))
    catalogue.close()
    aside = to.parent / f".{to.name}.{running.id}.partial"
    aside.mkdir()
    journal = RestoreJournal(aside / "journal")
    journal.begin(repository.held[0].id, "copies")
    journal.end(8, 0)
    content = aside / "content"
    if member == "orders":
        content.mkdir()
        (content / "note").write_bytes(b"the tree")
    else:
        content.write_bytes(b"the disk")
    if moment == "with both names" and member == "disk":
        os.link(content, to)
    elif moment == "after the name":
        content.rename(to)
    with TestClient(create_app(world.deps())) as client:
        stage = Stage.__new__(Stage)
        stage.client = client
        ended = stage.finish(running.model_dump(mode="json"))
    assert ended["phase"] == "Succeeded", ended
    assert (to if member == "disk" else to / "note").read_bytes() == (b"the disk" if member == "disk" else b"the tree")
    assert not aside.exists()


def test_a_restore_under_way_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is stopped leaves what is written where it is, and is done when it has been started again."""
    world = World(tmp_path)
    to = world.root / "restored.raw"
    begun, stopping = threading.Event(), threading.Event()
    stop = operations.Operations.stop

    async def stop_and_go_on(running: operations.Operations) -> None:
        running._stopping.set()
        stopping.set()
        await stop(running)

    def hold() -> None:
        begun.set()
        assert stopping.wait(WAIT_SECONDS)

    monkeypatch.setattr(operations.Operations, "stop", stop_and_go_on)
    with TestClient(create_app(world.deps())) as client:
        stage = Stage(world, client)
        stage.repository.volumes[1].before_read = hold
        operation = stage.begin("restores", member="disk", to=str(to))
        assert begun.wait(WAIT_SECONDS)
    stage.repository.volumes[1].before_read = lambda: None
    assert not to.exists()
    with TestClient(create_app(world.deps())) as client:
        stage = Stage.__new__(Stage)
        stage.client = client
        assert stage.finish(operation)["phase"] == "Succeeded"
    assert to.read_bytes()[:512] == b"boot" * 128


# ------------------------------------------------------------------ small parts


def test_an_export_that_is_no_nbd_server_is_found_out(tmp_path: Path) -> None:
    """Silence and a wrong greeting are both Temporary."""
    path = tmp_path / "nbd.sock"
    with pytest.raises(Temporary, match="Nothing answers"):
        greet(f"nbd+unix:///x?socket={path}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        greeting = [b"NBDMAGIC", b"HTTP/1.1"]

        def serve() -> None:
            for text in greeting:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(text)

        thread = threading.Thread(target=serve)
        thread.start()
        greet(f"nbd+unix:///x?socket={path}")
        with pytest.raises(Temporary, match="not an NBD server"):
            greet(f"nbd+unix:///x?socket={path}")
        thread.join(WAIT_SECONDS)
    with pytest.raises(Invalid):
        greet("https://example.com")
