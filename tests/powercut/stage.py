"""Where scenarios are played: every act in a process of its own, which ends by kill -9, before the power is cut.

Processes come from a fork server that has loaded what the engine stands on, but nothing of the engine: so each is quick, and
can still have one sync of the engine left out.
"""

from __future__ import annotations

import multiprocessing
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from tests.powercut.powered import PoweredDisk
from tests.powercut.scenarios import SCENARIOS, Said

ACT_SECONDS_MAX = 60
_LOADED_AHEAD = [
    "alembic.command", "asyncio", "blake3", "cryptography.hazmat.primitives.asymmetric.ed25519", "dpac_api.client",
    "dpac_api.models", "msgspec", "multiprocessing.connection", "numpy", "pytest", "sqlalchemy.orm", "uuid", "xxhash",
]  # fmt: skip
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(_LOADED_AHEAD)


class Lost(Exception):
    """A promise was not kept."""


def lost(disk: PoweredDisk, name: str, seed: int, omitted: str | None = None) -> str | None:
    """Play a scenario, without one sync if it is named; tells what was lost to the power cut, None if nothing was."""
    scenario = SCENARIOS[name]
    disk.renew()
    said: Said = {}
    try:
        for number in range(len(scenario.acts)):
            _play(name, number, disk.root, said, omitted)
        disk.power_cut(seed)
        _play(name, None, disk.root, said, None)
    except Lost as loss:
        return str(loss)
    return None


def _play(name: str, act: int | None, root: Path, said: Said, omitted: str | None) -> None:
    here, there = _processes.Pipe()
    process = _processes.Process(target=_act, args=(there, name, act, root, said, omitted), daemon=True)
    process.start()
    there.close()
    kind, value = "failed", "it ended without a word"
    try:
        assert here.poll(ACT_SECONDS_MAX), f"act {act} of {name!r} takes too long"
        with suppress(EOFError):
            while True:
                kind, value = here.recv()
                if kind != "said":
                    break
                said.update(value)
    finally:
        process.kill()
        process.join()
        here.close()
    if kind == "lost":
        raise Lost(value)
    assert kind == "kept", f"act {act} of {name!r} failed: {value}"


def _act(told: Connection, name: str, act: int | None, root: Path, said: Said, omitted: str | None) -> None:
    """In a process of its own: play, tell, and wait for the end."""
    try:
        if omitted is not None:
            from tests.powercut.omission import omit

            omit(omitted)

        def say(**facts: object) -> None:
            told.send(("said", facts))

        scenario = SCENARIOS[name]
        if act is None:
            scenario.check(root, said)
        else:
            scenario.acts[act](root, say)
    except BaseException as error:
        kind = "lost" if act is None or isinstance(error, AssertionError) else "failed"
        told.send((kind, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}"))
    else:
        told.send(("kept", None))
    told.recv()
