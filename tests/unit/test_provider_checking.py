"""Arguments, checked and brought to one spelling, with and without what a preview knows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpac_api.models import RetentionSpec
from dpac_provider.checking import check
from dpac_provider.inputs import CheckpointInputs, DrillInputs, FilesystemTargetInputs, GroupInputs, ReadyInputs
from dpac_provider.values import UNKNOWN, has_unknown


def _group(**changes: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "members": {"disk": {"kind": "volume", "path": "/d/disk.raw", "size": "64MiB"}},
        "replication": {"copies": {"mode": "async", "target": "copies", "rpo": "15s"}},
        **changes,
    }


def _problems(given: dict[str, Any]) -> dict[str, str]:
    _, problems = check(GroupInputs, given)
    return {problem.property_path: problem.reason for problem in problems}


def test_defaults_are_written_out_and_two_spellings_become_one() -> None:
    """`60s` and `1m`, given and omitted defaults: the same inputs."""
    terse, _ = check(GroupInputs, _group(replication={"c": {"mode": "async", "target": "t", "rpo": "60s"}}))
    full, _ = check(
        GroupInputs,
        _group(
            replication={"c": {"mode": "async", "target": "t", "rpo": "1m", "compression_level": 3.0}},
            journal={"history": "24h", "size_max": "16384MiB"},
            on_destroy="retain",
        ),
    )
    assert terse == full
    assert terse["journal"] == {"history": "1d", "size_max": "16GiB", "spool_max": "1GiB", "shards": 1}


def test_the_normal_form_is_its_own_normal_form() -> None:
    """What check returns passes check unchanged, or a second `up` would not be empty."""
    once, _ = check(GroupInputs, _group())
    assert check(GroupInputs, once) == (once, [])


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        (
            {"members": {"disk": {"kind": "volume", "path": "/d", "size": "64xiB"}}},
            "members.disk.size",
            "is not a size",
        ),
        ({"members": {"disk": {"kind": "volume", "path": "disk.raw"}}}, "members.disk.path", "absolute"),
        ({"members": {"disk": {"kind": "volume"}}}, "members.disk.path", "is required"),
        ({"members": {"disk": {"kind": "volume", "path": "/d", "sise": 1}}}, "members.disk.sise", "not an argument"),
        ({"members": {"disk": {"kind": "tape", "path": "/d"}}}, "members.disk", "volume"),
        ({"members": {"Disk!": {"kind": "volume", "path": "/d"}}}, "members.Disk!", "Lower-case letters"),
        ({"members": {}}, "members", "must not be empty"),
        ({"name": "My_Shop"}, "name", "Lower-case letters"),
        ({"replication": {"c": {"mode": "async", "target": "t", "rpo": "1ms"}}}, "replication.c.rpo", "from 1s to 7d"),
        ({"replication": {"c": {"mode": "async"}}}, "replication.c.target", "is required"),
        (
            {"replication": {"c": {"mode": "async", "target": "t", "retention": {"daily": -1}}}},
            "replication.c.retention.daily",
            "greater than or equal to 0",
        ),
        ({"journal": {"history": "soon"}}, "journal.history", "is not a duration"),
        ({"on_destroy": "keep"}, "on_destroy", "retain"),
        ({"owner": "nobody"}, "owner", "ORGANIZATION/PROJECT/STACK"),
    ],
)
def test_each_mistake_is_a_problem_of_its_property(change: dict[str, Any], path: str, says: str) -> None:
    """The path is the program's, and the reason says what would be right."""
    found = _problems(_group(**change))
    assert list(found) == [path]
    assert says in found[path]
    assert "Value error" not in found[path]


def test_several_mistakes_are_told_together() -> None:
    """All of them in one preview."""
    found = _problems(_group(name="X", journal={"history": "soon", "size_max": "big"}))
    assert set(found) == {"name", "journal.history", "journal.size_max"}


def test_a_mistake_between_members_names_both() -> None:
    """One path in two members is a problem of the group, told with both names."""
    twice = {"a": {"kind": "volume", "path": "/d"}, "b": {"kind": "directory", "path": "/d"}}
    (reason,) = _problems(_group(members=twice)).values()
    assert "'a'" in reason
    assert "'b'" in reason


def test_what_is_unknown_is_no_problem_and_stays_unknown() -> None:
    """Everything around it is checked and normal."""
    given = _group(members={"disk": {"kind": "volume", "path": UNKNOWN, "size": "65536KiB"}}, adopt=UNKNOWN)
    inputs, problems = check(GroupInputs, given)
    assert problems == []
    assert inputs["members"]["disk"] == {"kind": "volume", "path": UNKNOWN, "size": "64MiB"}
    assert inputs["adopt"] is UNKNOWN
    assert inputs["replication"]["copies"]["retention"]["tagged"] == "30d"


def test_a_mistake_beside_what_is_unknown_is_found() -> None:
    """An unknown path does not hide a wrong size, a missing or an invented property."""
    given = _group(
        members={
            "disk": {"kind": "volume", "path": UNKNOWN, "size": "1xB"},
            "other": {"kind": "volume", "size": UNKNOWN},
            "more": {"kind": "volume", "path": "/m", "invented": UNKNOWN},
        }
    )
    assert set(_problems(given)) == {"members.disk.size", "members.other.path", "members.more.invented"}


LEAVES = (
    "name", "adopt", "owner", "on_destroy", "journal", "journal.history", "members", "members.disk", "members.disk.path",
    "members.disk.size", "replication", "replication.copies", "replication.copies.target", "replication.copies.rpo",
    "replication.copies.retention", "replication.copies.retention.daily", "replication.copies.compression_level",
)  # fmt: skip


def _put(value: dict[str, Any], path: str, what: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        value = value[part]
        if not isinstance(value, dict):
            return
    value[last] = what


@given(st.sets(st.sampled_from(LEAVES)))
def test_any_set_of_properties_may_be_unknown(unknown: set[str]) -> None:
    """No problem is invented, the unknown ones stay so, all others are as when everything is known."""
    whole, _ = check(GroupInputs, _group(owner="o/p/s"))
    holed, expected = check(GroupInputs, _group(owner="o/p/s"))[0], check(GroupInputs, _group(owner="o/p/s"))[0]
    for path in sorted(unknown):
        _put(holed, path, UNKNOWN)
        _put(expected, path, UNKNOWN)
    inputs, problems = check(GroupInputs, holed)
    assert problems == []
    assert inputs == expected
    assert has_unknown(inputs) == bool(unknown)
    assert unknown or inputs == whole


@given(
    st.dictionaries(st.sampled_from(sorted(RetentionSpec.model_fields)), st.sampled_from([0, 1, 30, 30.0, "30", "30d"]))
)
def test_check_never_raises_and_is_stable(retention: dict[str, Any]) -> None:
    """Whatever is given: problems, or a normal form that stays."""
    given = _group(replication={"copies": {"mode": "async", "target": "t", "retention": retention}})
    inputs, problems = check(GroupInputs, given)
    if not problems:
        assert check(GroupInputs, inputs) == (inputs, [])


@pytest.mark.parametrize(
    ("model", "given", "path"),
    [
        (FilesystemTargetInputs, {"kind": "filesystem", "name": "copies", "path": "copies"}, "path"),
        (ReadyInputs, {"group": "shop", "until": "happy"}, "until"),
        (ReadyInputs, {"group": "shop", "timeout": "0s"}, "timeout"),
        (CheckpointInputs, {"group": "shop", "tag": "no spaces"}, "tag"),
        (DrillInputs, {"group": "shop", "at": "yesterday"}, "at"),
        (DrillInputs, {"group": "shop", "rto": "fast"}, "rto"),
        (DrillInputs, {}, "group"),
    ],
)
def test_the_other_resources_name_their_properties_too(model: Any, given: dict[str, Any], path: str) -> None:
    """One check serves them all."""
    _, problems = check(model, given)
    assert [problem.property_path for problem in problems] == [path]
