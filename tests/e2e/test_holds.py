"""Holds by the command line of a real site: kept at the target, in the way of a purge, released without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.site import LiveSite

pytestmark = pytest.mark.e2e


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site, with its logs in the report of a failure."""
    with LiveSite(tmp_path / "live") as site:
        site.start()
        yield site
        site.print_logs()


def test_a_held_checkpoint_outlives_the_group_and_is_in_the_way_of_a_purge(site: LiveSite) -> None:
    """The hold lies at the target, is told with its reason, and is released once nobody writes there any more."""
    site.protect_volume("db", 2**20)
    site.dpac("checkpoint", "db", "--tag", "audit")
    mark = site.wait_for_checkpoint("db", "tag:audit")
    held = site.dpac_json("hold", "db", "tag:audit", "--reason", "audit 2026")
    assert (held["id"], held["held"], held["held_reason"]) == (mark.id, True, "audit 2026")
    (item,) = site.dpac_json("checkpoints", "db", "--held")["items"]
    assert item["id"] == mark.id
    (space,) = site.dpac_json("space", "db")
    assert space["stored_bytes"] > 0
    refused = site.dpac("group", "delete", "db", "--on-destroy", "purge", "--yes", status=None)
    assert refused.returncode != 0
    assert f"are held: {mark.id}" in refused.stderr
    site.dpac("group", "delete", "db", "--on-destroy", "retain")
    (item,) = site.dpac_json("checkpoints", "db", "--held")["items"]
    assert item["held_reason"] == "audit 2026"
    site.dpac("release", "db", mark.id)
    assert site.dpac_json("checkpoints", "db", "--held")["items"] == []
    assert site.rest.checkpoint("db", mark.id).id == mark.id
    site.dpac("group", "delete", "db", "--on-destroy", "purge", "--yes")
