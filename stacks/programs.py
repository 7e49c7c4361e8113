"""The programs that stacks of this project can run, and which one a stack gets."""

from __future__ import annotations

from collections.abc import Callable

import primary
from declared import Mistake

PROGRAMS: dict[str, Callable[[], None]] = {"primary": primary.declare_primary}


def choose(asked: str | None, stack: str) -> Callable[[], None]:
    """The program that `dpac:program` asks for; without that setting, the one of the stack's own name."""
    program = PROGRAMS.get(asked or stack)
    if program is not None:
        return program
    known = ", ".join(sorted(PROGRAMS))
    if asked:
        raise Mistake(f"dpac:program is {asked!r}, which no program is called; there is: {known}.")
    raise Mistake(
        f"No program is called as the stack, {stack!r}; there is: {known}. "
        f"Say which one this stack runs: pulumi config set dpac:program {min(PROGRAMS)}"
    )
