"""What a restore in place has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tally:
    """Counted while it works, read by whoever watches. Of `total_bytes`, `done_bytes` are compared or written."""

    done_bytes: int = 0
    total_bytes: int = 0
    bytes_written: int = 0
    bytes_zeroed: int = 0
    paths_written: int = 0
    paths_removed: int = 0
