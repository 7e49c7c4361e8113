"""Compaction at a target: what is older than the history is thinned, and overwritten data goes (core/retention.py)."""

from __future__ import annotations

from dpac_engine.control.shipper import Commit
from dpac_engine.io.repository import RepositoryWriter


class NoCompaction:
    """Keeps everything."""

    def step(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> bool:
        """Nothing to do."""
        return False
