"""Sync legs as they are declared and shown: arguments, mistakes, refusals, metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

import dpac
from dpac_api.models import (
    DataState,
    GroupSpec,
    GroupStatus,
    LegStatus,
    SiteInfo,
    SlaState,
    SyncLegSpec,
    SyncStatus,
    WaitHistogram,
)
from dpac_engine.control import metrics
from dpac_engine.control.property_paths import property_path
from dpac_provider.checking import check
from dpac_provider.inputs import GroupInputs
from dpac_provider.values import UNKNOWN

MEMBERS = {"disk": {"kind": "volume", "path": "/srv/disk.raw"}}


def checked(leg: Any) -> tuple[Any, list[tuple[str, str]]]:
    """A leg's normal form, and what is wrong with it, as a preview tells."""
    normal, problems = check(GroupInputs, {"name": "shop", "members": MEMBERS, "replication": {"copies": leg}})
    return normal["replication"]["copies"], [(problem.property_path, problem.reason) for problem in problems]


def test_a_component_says_what_the_backend_takes() -> None:
    """Every argument arrives, and the defaults are the model's."""
    leg = dpac.Sync(to="copies", acknowledge="write", timeout="2s", on_loss="stop", rpo="30s")
    normal, problems = checked(leg.inputs("leg"))
    assert problems == []
    spec = SyncLegSpec.model_validate(normal)
    assert (spec.acknowledge, spec.timeout, spec.on_loss, spec.rpo) == ("write", "2s", "stop", "30s")
    assert checked(dpac.Sync(to="copies").inputs("leg"))[0]["timeout"] == "5s"


def test_a_leg_that_does_not_say_its_mode_is_async() -> None:
    """As every declaration from before."""
    spec = GroupSpec.model_validate({"members": MEMBERS, "replication": {"copies": {"target": "copies"}}})
    assert spec.replication["copies"].mode == "async"


@pytest.mark.parametrize(
    ("leg", "path", "says"),
    [
        ({"mode": "sync", "target": "c", "timeout": "1ms"}, "replication.copies.timeout", "from 100ms to 10m"),
        ({"mode": "sync", "target": "c", "on_loss": "never"}, "replication.copies.on_loss", "'async' or 'stop'"),
        ({"mode": "sync", "target": "c", "on_lost": "stop"}, "replication.copies.on_lost", "correct its name"),
        ({"mode": "async", "target": "c", "on_loss": "stop"}, "replication.copies.on_loss", "correct its name"),
        ({"mode": "soon", "target": "c"}, "replication.copies", "'async' or 'sync'"),
    ],
)
def test_a_mistake_is_told_on_its_property(leg: dict[str, str], path: str, says: str) -> None:
    """In the preview, without the mode that pydantic puts between."""
    ((where, reason),) = checked(leg)[1]
    assert where == path
    assert says in reason


def test_what_is_not_known_yet_is_no_mistake() -> None:
    """An Output that a preview does not know."""
    normal, problems = checked({"mode": "sync", "target": UNKNOWN})
    assert problems == []
    assert normal["acknowledge"] == "flush"


def test_rest_names_the_property_too() -> None:
    """The mode is no part of the path, whether it was said or not."""
    for leg in ({"mode": "sync", "rpo": "0s"}, {"rpo": "0s"}):
        mode = leg.get("mode", "async")
        body = {"spec": {"replication": {"copies": leg}}}
        found = property_path(("body", "spec", "replication", "copies", mode, "rpo"), body)
        assert found == "spec.replication.copies.rpo"


def test_metrics_tell_whether_a_leg_is_in_sync_how_often_it_fell_and_how_long_flushes_wait() -> None:
    """What an alert is made of."""
    sync = SyncStatus(phase="Alone", since=datetime.now(UTC), confirmed_lsn=0, falls=2, reason="gone")
    leg = LegStatus(
        mode="sync", target="copies", data_state=DataState.CONTINUOUS, rpo_seconds=15, lag_seconds=0, lag_bytes=0,
        seeded_fraction=1, shipped_lsn=0, sync=sync,
    )  # fmt: skip
    status = GroupStatus(
        data_state=DataState.CONTINUOUS, sla_state=SlaState.MEETING, protected=False, seeded=True, checkpoint_sequence=1,
        head_lsn=0, durable_lsn=0, spool_bytes=0, members={}, legs={"copies": leg}, observed_generation=1,
        flush_wait=WaitHistogram(count=3, sum_seconds=0.5, buckets={"0.001": 1, "0.1": 2}),
    )  # fmt: skip
    text = metrics.render(SiteInfo(site_uid="5" * 32, name="here", version="1"), {"shop": status}, {}, []).decode()
    labels = 'group="shop",leg="copies",target="copies"'
    assert f"dpac_leg_in_sync{{{labels}}} 0.0" in text
    assert f"dpac_leg_sync_falls_total{{{labels}}} 2.0" in text
    assert 'dpac_group_flush_wait_seconds_bucket{group="shop",le="0.1"} 2.0' in text
    assert 'dpac_group_flush_wait_seconds_count{group="shop"} 3.0' in text
