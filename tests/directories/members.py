"""Directory members under test: started, stopped, waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from dpac_engine.io.blueprints.blueprint import Blueprint
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.members.directory import DirectoryMember, ScanSettings
from tests.directories.journal import FoldingJournal

QUICK = ScanSettings(gather_seconds=0.1, missing_seconds=0.05)


def member_of(
    path: Path,
    journal: FoldingJournal,
    folder: Path,
    blueprint: Blueprint | None = None,
    settings: ScanSettings = QUICK,
) -> DirectoryMember:
    """A member that has replayed what the journal has beyond its index; not started."""
    member = DirectoryMember(path, journal, SystemClock(), folder, blueprint, settings)
    for lsn, change in journal.after(member.applied_lsn):
        member.replay(lsn, change)
    return member


@asynccontextmanager
async def running(member: DirectoryMember) -> AsyncIterator[DirectoryMember]:
    """The member, started and through its first capture; stopped at the end."""
    await member.start()
    try:
        await until(lambda: member.status().state != "Starting", "the member leaves Starting")
        yield member
    finally:
        await member.stop()


async def until(true: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail, naming it, when it does not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        await asyncio.sleep(0.01)
