"""Legs that are paused, resumed and resynced by a person: nothing is sent, everything is caught up with, and restarts change nothing."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Conflict, DpacError, NotFound
from dpac_api.models import Condition, DataState, GroupStatus, SlaState
from dpac_api.quantities import Size
from dpac_engine.control.group import Group
from dpac_engine.control.leg_orders import LegOrder, Verb
from tests.unit.test_comparing import BLOCK, MIB, SIZE, Counted
from tests.unit.test_group import Site, _fast, protected, run, shipped, until, volume_of, write

__all__ = ["_fast"]  # its fixture: seconds become hundredths


async def order(group: Group, verb: Verb, leg: str | None = None, **more: Any) -> None:
    """As REST gives it."""
    since = group.stamp() if verb == "Pause" else 0
    await group.order(LegOrder(verb=verb, leg=leg, by="ops", since_ns=since, **more))


def paused(status: GroupStatus) -> list[Condition]:
    """The conditions that say so."""
    return [condition for condition in status.conditions if condition.type == "Paused"]


def late(group: Group) -> bool:
    """Its RPO is not met."""
    return group.status().sla_state == SlaState.RPO_NOT_MET


def counted(site: Site, *names: str) -> list[Counted]:
    """Targets that count."""
    made = [Counted() for _ in names]
    site.targets |= dict(zip(names, made, strict=True))
    return made


def spec(site: Site, *legs: str, size: int = SIZE) -> dict[str, Any]:
    """A volume, and legs."""
    disk = {"kind": "volume", "path": str(site.disk), "size": f"{size // MIB}MiB"}
    return {"members": {"disk": disk}, "replication": {name: {"target": name, "rpo": "1s"} for name in legs}}


def test_a_paused_leg_sends_nothing_until_it_is_resumed_whatever_restarts(tmp_path: Path, seed: int) -> None:
    """The other leg goes on; a kill and a stop between change nothing; once resumed the target has all of it."""
    chance = random.Random(seed)

    async def story(site: Site) -> None:
        still, _ = counted(site, "still", "copies")
        group = site.group(spec=spec(site, "still", "copies"))
        await group.start()
        await protected(group)
        await order(group, "Pause", "still", reason="its disks are replaced")
        await until(lambda: group.legs["still"].data_state == DataState.PAUSED)
        objects = dict(still.objects)
        for end in (site.kill, Group.stop):
            write(group, 0, chance.randbytes(BLOCK))
            await shipped(group, tag="while")
            status = group.status()
            [told] = paused(status)
            assert told.subject == "leg/still"
            assert "paused by ops (its disks are replaced)" in told.message
            assert status.legs["still"].paused is not None
            assert told.since == status.legs["still"].paused.since
            assert status.data_state == DataState.PAUSED
            await until(partial(late, group))
            assert still.objects == objects
            await end(group)
            if group in site.groups:
                site.groups.remove(group)
            group = site.group()
            await group.start()
        await until(lambda: group.legs["still"].data_state == DataState.PAUSED)
        assert still.objects == objects
        since = paused(group.status())[0].since
        await order(group, "Pause", "still", reason="again")
        assert paused(group.status())[0].since == since, "who paused it first is who is asked"
        await order(group, "Resume")
        await protected(group)
        assert not paused(group.status())
        await shipped(group, tag="after")
        assert site.disk_at("still", "tag:after") == site.disk_at("copies", "tag:after")

    run(tmp_path, story)


def test_a_leg_that_is_paused_for_longer_than_the_spool_waits_is_tracked_by_bitmaps(tmp_path: Path, seed: int) -> None:
    """As one whose target is away: the spool is not held up, and what changed is sent once it is resumed, and no more."""
    chance = random.Random(seed)

    async def story(site: Site) -> None:
        [still] = counted(site, "copies")
        group = site.group(spec=spec(site, "copies"), spool_max=Size("8MiB"))
        await group.start()
        await protected(group)
        await order(group, "Pause")
        await until(lambda: group.legs["copies"].data_state == DataState.PAUSED)
        at = 0
        while not group.legs["copies"].memory.lost:
            await asyncio.sleep(0)
            await until(lambda: not volume_of(group).congested)
            write(group, at % 64 * BLOCK, chance.randbytes(BLOCK))
            at += 1
        await until(lambda: group.legs["copies"].data_state == DataState.BITMAP_TRACKING)
        assert paused(group.status())
        still.sent_bytes = 0
        await order(group, "Resume", "copies")
        await protected(group)
        assert still.sent_bytes < 64 * BLOCK * 2 + MIB
        await shipped(group, tag="after")
        assert site.disk_at(at="tag:after") == volume_of(group).read_blocking(0, SIZE)

    run(tmp_path, story)


@pytest.mark.parametrize(("full", "bucket"), [(False, False), (False, True), (True, False)])
def test_a_resync_sends_what_differs_and_a_full_one_everything(
    tmp_path: Path, seed: int, full: bool, bucket: bool
) -> None:
    """Compared with what the target holds, little is sent; anew, all is. Checkpoints from before stay, and the log has no gap."""
    chance = random.Random(seed)

    async def story(site: Site) -> None:
        [copies] = counted(site, "copies")
        if bucket:
            site.buckets.add("copies")
        site.disk.write_bytes(chance.randbytes(SIZE))
        group = site.group(spec=spec(site, "copies"))
        await group.start()
        await protected(group)
        await shipped(group, tag="before")
        then = site.disk_at(at="tag:before")
        copies.sent_bytes = 0
        await order(group, "Resync", full=full)
        await until(lambda: group.legs["copies"].memory.resync is None)
        write(group, 0, chance.randbytes(BLOCK))
        await protected(group)
        await shipped(group, tag="after")
        print(f"sent {copies.sent_bytes} of {SIZE}")
        assert (copies.sent_bytes > SIZE) if full else (copies.sent_bytes < MIB)
        assert site.disk_at(at="tag:after") == volume_of(group).read_blocking(0, SIZE)
        assert site.disk_at(at="tag:before") == then

    run(tmp_path, story)


def test_a_resync_that_a_kill_cuts_short_is_taken_up_again(tmp_path: Path, seed: int) -> None:
    """The order is on record before it counts."""
    chance = random.Random(seed)

    async def story(site: Site) -> None:
        [copies] = counted(site, "copies")
        site.disk.write_bytes(chance.randbytes(SIZE))
        group = site.group(spec=spec(site, "copies"))
        await group.start()
        await protected(group)
        await shipped(group, tag="before")
        copies.away = True
        await order(group, "Resync", full=True)
        await site.kill(group)
        copies.away, copies.sent_bytes = False, 0
        group = site.group()
        await group.start()
        await until(lambda: group.legs["copies"].memory.resync is None)
        await protected(group)
        await until(lambda: not group.legs["copies"].memory.anew)
        assert copies.sent_bytes > SIZE
        await shipped(group, tag="after")
        assert site.disk_at(at="tag:after") == site.disk_at(at="tag:before")

    run(tmp_path, story)


def test_orders_that_cannot_be_kept_are_refused_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leg that is not there, a resync of one that is paused, and an order that no restart would remember."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        with pytest.raises(NotFound, match="no leg 'other'"):
            await order(group, "Pause", "other")
        await order(group, "Pause")
        with pytest.raises(Conflict, match="is paused"):
            await order(group, "Resync")
        await order(group, "Resume")

        async def full() -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(group, "record", full)
            with pytest.raises(DpacError, match="would not outlive a restart"):
                await order(group, "Pause")
        assert not paused(group.status())
        write(group, 0, bytes(512))
        await shipped(group, tag="on")
        assert site.disk_at(at="tag:on")[:512] == bytes(512)

    run(tmp_path, story)
