"""A target that was away for longer than the spool could wait: what is sent once it is back, against what changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.backend import OWNER, wait_for
from bench.load import Load, run
from bench.places import Folder
from bench.row import Row
from dpac_api.client import Client
from dpac_api.models import DataState, GroupSpec
from dpac_engine.core.segment import HEADER_BYTES, SegmentKind, decode_segment_header

MIB = 2**20
VOLUME_BYTES = 256 * MIB
CHANGED_BYTES = 32 * MIB
"""Of it, written over and over from end to end until the spool waits no longer: none is left out."""


def resync_rows(client: Client, folder: Path, place: Folder) -> Iterator[Row]:
    """Bytes of the seed segments that come to a target after its absence, as a share of the dirty blocks."""
    name = "resync"
    client.put_target(name, place.target(name), owner=OWNER)
    spec = GroupSpec.model_validate(
        {
            "members": {"disk": {"kind": "volume", "path": str(folder / f"{name}.raw"), "size": "256MiB"}},
            "replication": {"copies": {"target": name, "rpo": "5s"}},
            "journal": {"history": "1h", "size_max": "8GiB", "spool_max": "256MiB"},
        }
    )
    uri = client.put_group(name, spec, owner=OWNER).members["disk"].nbd_uri

    def state() -> DataState:
        return client.group_status(name).legs["copies"].data_state

    def has_all() -> bool:
        leg = client.group_status(name).legs["copies"]
        return leg.data_state == DataState.CONTINUOUS and leg.lag_bytes < MIB  # what it lacks is dirty, too

    try:
        run(Load("fill", "write", "1m", 4, 5, compressible_percent=0), uri, VOLUME_BYTES)
        wait_for("a first copy", lambda: client.group_status(name).protected and has_all())
        target, away = place.root / name, place.root / f"{name}-away"
        target.rename(away)
        load = Load("changes", "write", "64k", 4, 5, compressible_percent=0)
        while state() != DataState.BITMAP_TRACKING:
            run(load, uri, CHANGED_BYTES)
        before = seeded_bytes(away)
        away.rename(target)
        wait_for("the return", lambda: client.group_status(name).protected and state() == DataState.CONTINUOUS)
        sent = seeded_bytes(target) - before
        yield Row.against(
            "a target back after an absence: bytes sent", sent, "dirty blocks", CHANGED_BYTES, "bytes", most=1.1
        )
    finally:
        client.delete_group(name)
        (folder / f"{name}.raw").unlink(missing_ok=True)
        place.remove(name)


def seeded_bytes(target: Path) -> int:
    """Of all seed segments below a folder: what a resync sends. Compaction writes other segments meanwhile."""
    segments = (path for path in target.glob("g/*/s/*/*") if path.is_file())
    return sum(path.stat().st_size for path in segments if kind_of(path) == SegmentKind.FILL)


def kind_of(segment: Path) -> SegmentKind:
    """As its header says."""
    with segment.open("rb") as file:
        return decode_segment_header(file.read(HEADER_BYTES)).kind
