"""Puts the world's stand-ins in the place of what the engine's modules use of the operating system."""

from __future__ import annotations

import fcntl
import gc
import logging
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tenacity import wait

from dpac_engine.control import (
    compaction,
    group,
    log_slice,
    member,
    merging,
    seeding,
    shipper,
    spool_quota,
    sync_leg,
    tracking,
)
from dpac_engine.core import bitmap, entries, retention, stripes
from dpac_engine.io import daemon_thread, durable_note, files, repository, reserved_file, spare_files, spool, tails
from dpac_engine.io.members import (
    beneath,
    capture,
    chunks,
    directory,
    overlay,
    reading,
    scan,
    seed,
    tree_index,
    volume,
    volume_file,
    volume_rewind,
    write_behind,
)
from tests.simulation import host, tree_calls, world

SPOOL_FILE_BYTES = 64 * 1024
_ENGINE = logging.getLogger("dpac_engine")


class Secrets:
    """`secrets`, and what retries ask of `random`, from the seed."""

    def __init__(self) -> None:
        self.chance = Random(0)

    def token_bytes(self, count: int) -> bytes:
        """See `secrets.token_bytes`."""
        return self.chance.randbytes(count)

    def uniform(self, least: float, most: float) -> float:
        """See `random.uniform`."""
        return self.chance.uniform(least, most)

    def token_hex(self, count: int) -> str:
        """See `secrets.token_hex`."""
        return self.chance.randbytes(count).hex()


SECRETS = Secrets()
_OS = host.Proxy()
_THREADS = SimpleNamespace(Thread=world.Thread, Condition=world.Condition, Lock=world.Lock, Event=threading.Event)
_MMAP = SimpleNamespace(mmap=lambda *args, **named: host.current().mmap(*args, **named), PROT_READ=mmap.PROT_READ)
_FCNTL = SimpleNamespace(flock=lambda *args: host.current().flock(*args), LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)

_STAND_INS: dict[Any, dict[str, Any]] = {
    spool: {"os": _OS, "threading": _THREADS, "mmap": _MMAP},
    spare_files: {"os": _OS, "threading": _THREADS},
    durable_note: {"os": _OS, "threading": _THREADS},
    files: {"os": _OS, "open": host.OpenedFile},
    volume: {
        "os": _OS,
        "wait": world.wait_for,
        "punch_hole": lambda *args: host.current().punch_hole(*args),
        "data_ranges": lambda *args: host.current().data_ranges(*args),
    },
    volume_file: {"os": _OS, "fcntl": _FCNTL},
    write_behind: {"punch_hole": lambda *args: host.current().punch_hole(*args)},
    member: {"os": _OS, "Path": host.HostPath},
    reserved_file: {"os": _OS, "threading": _THREADS},
    group: {"shutil": _OS, "boot_id": lambda: host.current().boot_id},
    tails: {"threading": _THREADS},
    tracking: {"shutil": _OS},
    daemon_thread: {"threading": _THREADS, "queue": world},
    beneath: {"os": tree_calls.OS},
    scan: {"os": tree_calls.OS},
    reading: {"os": tree_calls.OS, "time": tree_calls.TIME},
    chunks: {"os": tree_calls.OS, "time": tree_calls.TIME},
    seed: {"os": tree_calls.OS},
    capture: {"os": tree_calls.OS, "shutil": _OS},
    tree_index: {"sqlite3": tree_calls.SQLITE},
    directory: {"ThreadPoolExecutor": world.OneThread, "TreeWatch": tree_calls.Watch},
    wait: {"random": SECRETS},
    volume_rewind: {"os": host.Proxy()},
    repository: {"ThreadPoolExecutor": world.AtOnce, "secrets": SECRETS},
}

# Small files, records, batches and pieces, and a short history: every boundary is met often.
_SMALL: dict[Any, dict[str, Any]] = {
    spool: {"FILE_BYTES": SPOOL_FILE_BYTES},
    spool_quota: {"FILE_BYTES": SPOOL_FILE_BYTES},
    volume: {"BATCH_BYTES": 32 * 1024, "BATCH_RECORDS": 5},
    overlay: {"ZERO_BLOCKS_MAX": 8},
    reserved_file: {"RESERVE_BYTES": 16 * 1024},
    tails: {"TAIL_BYTES": 32 * 1024},
    sync_leg: {"CLOSE_BYTES": 16 * 1024},
    bitmap: {"GRANULARITY_BYTES_MIN": 4096},
    seeding: {"PIECE_BYTES": 32 * 1024, "READ_BYTES": 16 * 1024},
    log_slice: {"SLICE_BYTES_MAX": 64 * 1024},
    shipper: {"COMPACT_EVERY_SECONDS": 3.0},
    compaction: {"GRACE_NS": 20 * 10**9, "LOOK_AGAIN_NS": 5 * 10**9},
    merging: {"MERGED_BYTES": 64 * 1024},
    stripes: {"STRIPE_BYTES": 128 * 1024, "SMALL_BYTES": 8 * 1024},
    retention: {"MERGE_SEGMENTS_MIN": 3},
    entries: {"CHUNK_BYTES": 2048},
    chunks: {"CHUNK_BYTES": 2048},
}


class Defects(logging.Handler):
    """What the engine logs with a traceback: it did not expect that."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.exc_info:
            self.found.append(self.format(record))


@contextmanager
def staged() -> Iterator[Defects]:
    """Within it the engine runs in whatever world was entered."""
    defects, level, propagates = Defects(), _ENGINE.level, _ENGINE.propagate
    patches = [mock.patch.multiple(module, create=True, **names) for module, names in _STAND_INS.items()]
    patches += [mock.patch.multiple(module, **names) for module, names in _SMALL.items()]
    _ENGINE.addHandler(defects)
    _ENGINE.setLevel(logging.ERROR)
    _ENGINE.propagate = False
    for patch in patches:
        patch.start()
    try:
        yield defects
    finally:
        gc.collect()  # what closes its file when it goes must still find this host
        for patch in reversed(patches):
            patch.stop()
        _ENGINE.removeHandler(defects)
        _ENGINE.setLevel(level)
        _ENGINE.propagate = propagates
        world.enter(None)
        host.enter(None)
