"""A journal that its disk damaged while its group was dead: what is whole is brought to the volumes, and nothing is cut off in silence."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from dpac_api.models import DataState
from dpac_engine.control import group as group_module
from dpac_engine.control import group_state
from dpac_engine.control.group import Group
from dpac_engine.core import records
from dpac_engine.core.records import HEADER_BYTES, Kind
from dpac_engine.io import durable_note, salvage
from dpac_engine.io import spool as spool_module
from tests.unit.test_group import (
    DISK_BYTES,
    SHARD,
    Site,
    _fast,  # noqa: F401 - its fixture, for every test here
    condition_types,
    protected,
    run,
    shipped,
    until,
    volume_of,
    write,
)

BLOCK = 4096


def _spool_files(site: Site) -> list[Path]:
    return sorted((site.folder / "spool").glob("*.spool"))


def _damage(site: Site, block: bytes) -> None:
    """Flip a bit of the newest record whose payload is that."""
    for path in reversed(_spool_files(site)):
        content = bytearray(path.read_bytes())
        at = content.rfind(block)
        if at >= 0:
            content[at] ^= 1
            path.write_bytes(content)
            return
    raise AssertionError("the record is in no spool file any more")


def _damage_to_the_end(site: Site, block: bytes) -> None:
    """The newest record whose payload is that, and all that lies behind it."""
    for path in reversed(_spool_files(site)):
        content = bytearray(path.read_bytes())
        at = content.rfind(block)
        if at >= 0:
            content[at - HEADER_BYTES :] = bytes(len(content) - at + HEADER_BYTES)
            path.write_bytes(content)
            return
        path.write_bytes(bytes(len(content)))
    raise AssertionError("the record is in no spool file any more")


def _letters(letter: bytes) -> bytes:
    return letter * BLOCK


async def _written(group: Group, site: Site) -> None:
    """Block 0 is b, then c; block 1 is lost; block 2 is d. All durable in the journal, and perhaps in the file."""
    for block, letter in ((0, b"b"), (1, b"l"), (0, b"c"), (2, b"d")):
        write(group, block * BLOCK, _letters(letter))
    answers: list[OSError | None] = []
    volume_of(group).flush(answers.append)
    await until(lambda: answers)


@pytest.mark.parametrize("ended_by", ["a kill", "a loss of power"])
def test_damage_before_what_was_durable_is_told_and_cuts_nothing_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    """What lies behind it is in the volume, not what it was overwritten from, and every target gets there again."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        site.targets["copies"].away = True
        scan_lsn = group.state.scan_lsn
        await _written(group, site)
        group.state.durable_lsn = group.spool.durable_lsn
        if ended_by == "a loss of power":
            monkeypatch.setattr(group_module, "boot_id", lambda: "another start of the host")
            group.state.scan_lsn = scan_lsn  # as it was before the volume had taken them
            await asyncio.to_thread(group._store_state)
            stored = (site.folder / "state.json").read_bytes()
            await site.kill(group)
            (site.folder / "state.json").write_bytes(stored)
        else:
            await site.kill(group)
            state = group_state.load(site.folder / "state.json")
            assert state is not None
            state.scan_lsn, state.durable_lsn = min(state.scan_lsn, scan_lsn), 0
            (site.folder / "state.json").write_bytes(group_state.encode(state))
        sequence = group.state.sequence
        _damage(site, _letters(b"l"))
        again = site.group()
        await again.start()
        assert "JournalDamaged" in condition_types(again)
        await until(lambda: again.members[1].attached)
        device = volume_of(again).read_blocking(0, DISK_BYTES)
        assert device[:BLOCK] == _letters(b"c")
        assert device[2 * BLOCK : 3 * BLOCK] == _letters(b"d")
        assert again.state.sequence > sequence
        site.targets["copies"].away = False
        await until(lambda: again.legs["copies"].data_state == DataState.CONTINUOUS)
        await shipped(again, tag="after")
        assert site.disk_at(at="tag:after") == device
        await until(lambda: "JournalDamaged" not in condition_types(again))
        await site.kill(again)
        third = site.group()  # and the damage that still lies there is not met again
        await third.start()
        assert "JournalDamaged" not in condition_types(third)
        await protected(third)

    run(tmp_path, story)


def test_an_end_that_a_loss_of_power_tore_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind what was durable a record may be there without the one before it: nobody was promised either."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        group.state.durable_lsn = group.spool.durable_lsn
        await asyncio.to_thread(group._store_state)
        await _written(group, site)
        stored = group_state.load(site.folder / "state.json")
        assert stored is not None
        await site.kill(group)
        (site.folder / "state.json").write_bytes(group_state.encode(stored))
        _damage(site, _letters(b"b"))
        monkeypatch.setattr(group_module, "boot_id", lambda: "another start of the host")
        again = site.group()
        await again.start()
        assert "JournalDamaged" not in condition_types(again)

    run(tmp_path, story)


@pytest.mark.parametrize("place", ["the volume's file", "the target", "neither"])
def test_damage_up_to_the_end_is_told_where_anything_else_has_what_it_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Nothing whole lies behind it, as where an append was cut short: but taken for that, volume and target would differ for good."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        volume, target = volume_of(group), site.targets["copies"]
        target.away = place != "the target"
        old = group_state.load(site.folder / "state.json")
        assert old is not None
        if place != "the volume's file":
            monkeypatch.setattr(volume, "_apply_batch", asyncio.Event().wait)
        write(group, 0, _letters(b"x"))
        answers: list[OSError | None] = []
        volume.flush(answers.append)
        await until(lambda: answers)
        if place == "the volume's file":
            volume.hurry()
            await until(lambda: site.disk.read_bytes()[:BLOCK] == _letters(b"x"))
        elif place == "the target":
            await shipped(group, tag="before")
        await site.kill(group)
        (site.folder / "state.json").write_bytes(group_state.encode(old))
        _damage_to_the_end(site, _letters(b"x"))
        again = site.group()
        await again.start()
        assert ("JournalDamaged" in condition_types(again)) == (place != "neither")
        await until(lambda: again.members[1].attached)
        device = volume_of(again).read_blocking(0, DISK_BYTES)
        assert device[:BLOCK] == (_letters(b"x") if place == "the volume's file" else bytes(BLOCK))
        target.away = False
        await until(lambda: again.legs["copies"].data_state == DataState.CONTINUOUS)
        await shipped(again, tag="after")
        assert site.disk_at(at="tag:after") == device

    run(tmp_path, story)


def test_a_note_of_what_is_durable_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    """Missing, cut short or damaged: then what `state.json` says holds."""
    assert durable_note.read(tmp_path) == 0
    note = durable_note.DurableNote(tmp_path)
    for lsn in (128, 64, 192):
        note.leave(lsn)
    content = (tmp_path / durable_note.NAME).read_bytes()
    assert durable_note.read(tmp_path) == 192
    for broken in (content[:-1], b"", bytes(16), bytes([content[0] ^ 1]) + content[1:]):
        (tmp_path / durable_note.NAME).write_bytes(broken)
        assert durable_note.read(tmp_path) == 0
    durable_note.DurableNote(tmp_path / "missing").leave(64)  # a disk that does not take it ends nothing


def test_whole_records_behind_damage_are_found_wherever_they_lie(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever page is overwritten by whatever else, the records that it does not touch are found, in order, and none that never was."""
    monkeypatch.setattr(spool_module, "FILE_BYTES", 2**16)
    chance = random.Random(seed)
    tag = int.from_bytes(bytes.fromhex(SHARD)[:4], "little")
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        stream, placed, lsn = bytearray(2**17), list[tuple[int, int]](), 0
        while lsn < 2**17 - 2**14:
            payload = chance.randbytes(chance.choice([0, 100, 5000]))
            stored = records.stored_bytes(len(payload))
            if lsn // 2**16 != (lsn + stored - 1) // 2**16:
                lsn = 2**16
            header = records.encode_header(Kind.WRITE, 0, 3, 1, lsn, 0, len(payload), 1, tag, 1, payload)
            stream[lsn : lsn + HEADER_BYTES + len(payload)] = header + payload
            placed.append((lsn, lsn + HEADER_BYTES + len(payload)))
            lsn += stored
        at = chance.randrange(32) * 4096
        stream[at : at + 4096] = chance.choice([bytes(4096), stream[:4096], chance.randbytes(4096)])
        for index in range(2):
            (folder / f"{index:016x}.spool").write_bytes(stream[index * 2**16 : (index + 1) * 2**16])
        found = [header.lsn for header, _ in salvage.beyond(folder, 0, 0, tag, 3)]
        whole = {begin for begin, end in placed if end <= at or begin >= at + 4096}
        assert found == sorted(found)
        assert whole <= set(found) <= {begin for begin, _ in placed}, f"seed {seed}, spool {number}"
