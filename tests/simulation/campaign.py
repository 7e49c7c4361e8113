"""Many histories from fresh seeds, side by side in processes: `python -m tests.simulation.campaign --seconds 600`.

Prints each failing seed, what was wrong and the command that plays that history again; at its end how many were played, and what one
costs. Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from tests.simulation import stage, world
from tests.simulation.history import replay_command
from tests.simulation.kinds import KINDS, play


class Failure(NamedTuple):
    """A history that broke a promise."""

    kind: str
    seed: int
    what: str


class Outcome(NamedTuple):
    """What a campaign found."""

    played: Counter[str]
    """Kind of history -> how many."""
    seconds: float
    cpu_seconds: float
    """Of all processes, for the histories alone."""
    failures: list[Failure]

    def __str__(self) -> str:
        count = self.played.total()
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.played.items()))
        return (
            f"{count} histories ({kinds}) in {self.seconds:.0f} s: {count / self.seconds * 60:.0f} a minute here, "
            f"{count / self.cpu_seconds * 60:.0f} a minute of one processor; {len(self.failures)} failed"
        )


def campaign(seed: int, seconds: float, processes: int, told: Callable[[str], object] = print) -> Outcome:
    """Play histories from `seed` on for so long; `told` hears of each failure at once."""
    context, begin = multiprocessing.get_context("spawn"), time.monotonic()
    pipes: list[Connection] = []
    workers = []
    for number in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(sender, seed + number, processes, seconds), daemon=True)
        worker.start()
        sender.close()
        workers.append(worker)
        pipes.append(receiver)
    played, failures, cpu_seconds = Counter[str](), list[Failure](), 0.0
    try:
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    message: Any = pipe.recv()
                except EOFError:
                    pipes.remove(pipe)
                    continue
                if isinstance(message, Failure):
                    failures.append(message)
                    told(f"{replay_command(message.kind, message.seed)}\n    {message.what}")
                else:
                    played += message[0]
                    cpu_seconds += message[1]
    finally:
        for worker in workers:
            worker.terminate() if pipes else worker.join()
            worker.join()
    crashed = [worker.exitcode for worker in workers if worker.exitcode]
    if crashed and not failures:
        raise RuntimeError(f"{len(crashed)} of {processes} processes ended with {crashed}")
    return Outcome(played, time.monotonic() - begin, cpu_seconds, failures)


def _work(told: Connection, first: int, step: int, seconds: float) -> None:
    played, deadline, seed = Counter[str](), time.monotonic() + seconds, first
    begin = time.process_time()
    with stage.staged() as defects:
        while time.monotonic() < deadline:
            kind = random.Random(seed).choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]
            try:
                play(seed, defects, kind)
            except (AssertionError, world.Ended) as error:
                told.send(Failure(kind, seed, (str(error).splitlines() or [repr(error)])[:2][-1]))
            played[kind] += 1
            seed += step
    told.send((played, time.process_time() - begin))
    told.close()


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 40))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    print(f"histories from seed {asked.seed} on, in {asked.processes} processes", flush=True)
    found = campaign(asked.seed, asked.seconds, asked.processes, lambda line: print(line, flush=True))
    print(found)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
