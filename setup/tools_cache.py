"""Versioned folders of the tools cache: one that exists is complete.

A folder appears by a rename once all of it is there, so that an interrupted run
leaves nothing that a later one would trust.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A partial folder to fill; it becomes `target` at the end, and goes if the block fails.

    To be called while `console.alone` holds the cache: what an interrupted run left of this tool is removed.
    """
    tool = target.name.rpartition("-")[0]
    for leftover in target.parent.glob(f"{tool}-*.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
