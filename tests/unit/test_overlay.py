"""The overlay against a byte-per-sector model."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpac_engine.io.members import overlay as overlay_module
from dpac_engine.io.members.overlay import SECTOR_BYTES, Overlay

DEVICE_SECTORS = 512

changes = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero"]),
        st.one_of(st.integers(0, 63), st.integers(0, DEVICE_SECTORS - 1)),
        st.one_of(st.integers(1, 24), st.integers(1, DEVICE_SECTORS)),
    ),
    max_size=25,
)


def where(overlay: Overlay, sectors: int) -> list[int]:
    """Position of every sector's newest bytes, as the overlay says."""
    found = []
    for part in overlay.slices(0, sectors * SECTOR_BYTES):
        for sector in range(part.length // SECTOR_BYTES):
            found.append(part.position if part.position <= 0 else part.position + sector * SECTOR_BYTES)
    return found


@pytest.fixture(autouse=True)
def _ranges_from_four_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small device meets both ways of keeping zeroes."""
    monkeypatch.setattr(overlay_module, "ZERO_BLOCKS_MAX", 4)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes, st.integers(0, 25))
def test_the_newest_change_of_each_sector_is_found_until_it_is_applied(
    sequence: list[tuple[str, int, int]], applied: int
) -> None:
    """After any changes, and the applying of any prefix of them in order, each sector's newest place is right."""
    overlay, model, done = Overlay(), [0] * DEVICE_SECTORS, []
    lsn = 64
    for kind, start, count in sequence:
        count = min(count, DEVICE_SECTORS - start)
        position = lsn + 64 if kind == "write" else -lsn
        if kind == "write":
            overlay.write(start * 512, count * 512, position)
        else:
            overlay.zero(start * 512, count * 512, lsn)
        for sector in range(count):
            model[start + sector] = position + sector * 512 if kind == "write" else -lsn
        done.append((kind, start, count, lsn))
        lsn += 64 + (count * 512 if kind == "write" else 0)
    assert where(overlay, DEVICE_SECTORS) == model
    for kind, start, count, at in done[:applied]:
        if kind == "write":
            overlay.applied_write(start * 512, count * 512, at + 64)
        else:
            overlay.applied_zero(start * 512, count * 512, at)
        for sector in range(start, start + count):
            mine = at + 64 + (sector - start) * 512 if kind == "write" else -at
            if model[sector] == mine:
                model[sector] = 0
    assert where(overlay, DEVICE_SECTORS) == model
    if applied >= len(done):
        assert not overlay


def test_what_the_overlay_does_not_have_comes_in_few_parts() -> None:
    """Around a changed block, and in one part where nothing is changed: each part is asked of the file."""
    overlay = Overlay()
    assert [tuple(part) for part in overlay.slices(512, 2**30)] == [(512, 2**30, 0)]
    overlay.zero(8 * 4096, 4096, 64)
    assert [tuple(part) for part in overlay.slices(0, 16 * 4096)] == [
        (0, 8 * 4096, 0),
        (8 * 4096, 4096, -64),
        (9 * 4096, 7 * 4096, 0),
    ]
    assert list(overlay.slices(0, 0)) == []
