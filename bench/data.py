"""What is copied: a volume and a tree of small files of a realistic mix, the same for the same seed.

A third of what a volume holds is text, a third pages of a database, a third is random (compressed or encrypted before);
a quarter of the volume is holes, and some of what is allocated is zeroes. Nothing occurs twice, so that no program gains by deduplication what it would
not gain of unlike data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

EXTENT_BYTES = 4 * 2**20
_PAGE_BYTES = 8192
_WORDS = 20_000
_ROW = np.dtype(
    [("id", "<u8"), ("created", "<u8"), ("customer", "<u4"), ("amount", "<i4"), ("state", "S12"), ("note", "S28")]
)
_STATES = np.array([b"new", b"paid", b"packed", b"shipped", b"returned"])


class Mix:
    """Bytes of several kinds, from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        letters = self._random.integers(97, 123, (_WORDS, 12), np.uint8)
        lengths = self._random.integers(2, 13, _WORDS)
        self._words = [letters[at, : lengths[at]].tobytes() for at in range(_WORDS)]
        rank = np.arange(1, _WORDS + 1)
        self._likely = np.cumsum(1 / rank) / np.sum(1 / rank)
        self._next_id = 1

    def text(self, length: int) -> bytes:
        """Words by Zipf's law; compresses to about 0.4."""
        picked = np.searchsorted(self._likely, self._random.random(length // 5 + 16))
        return b" ".join([self._words[at] for at in picked.tolist()])[:length].ljust(length, b".")

    def pages(self, length: int) -> bytes:
        """Database pages: rows of ids, times, amounts and short texts, a tenth of each page free."""
        per_page = int(_PAGE_BYTES * 0.9) // _ROW.itemsize
        count = -(-length // _PAGE_BYTES)
        rows = np.zeros(count * per_page, _ROW)
        rows["id"] = np.arange(self._next_id, self._next_id + len(rows))
        rows["created"] = 1_700_000_000_000_000 + np.cumsum(self._random.integers(1, 2_000_000, len(rows)))
        rows["customer"] = self._random.integers(0, 2**20, len(rows))
        rows["amount"] = self._random.integers(100, 100_000, len(rows))
        rows["state"] = _STATES[self._random.integers(0, len(_STATES), len(rows))]
        rows["note"] = np.frombuffer(self.text(len(rows) * 28), "S28")
        self._next_id += len(rows)
        pages = np.zeros((count, _PAGE_BYTES), np.uint8)
        pages[:, 192 : 192 + per_page * _ROW.itemsize] = rows.view(np.uint8).reshape(count, -1)[:, : _PAGE_BYTES - 192]
        return pages.tobytes()[:length]

    def random(self, length: int) -> bytes:
        """Bytes that do not compress."""
        return self._random.bytes(length)

    def any(self, length: int) -> bytes:
        """One of the kinds."""
        kinds: tuple[Callable[[int], bytes], ...] = (self.text, self.pages, self.random)
        return kinds[int(self._random.integers(0, len(kinds)))](length)

    def small_size(self) -> int:
        """The size of a small file: most have a few KiB, some a hundred."""
        return int(min(self._random.lognormal(8.3, 1.2), 2**20))


def make_volume(path: Path, size_bytes: int, seed: int = 1) -> int:
    """Write the volume's raw file; returns how many bytes of it are not holes."""
    mix, held = Mix(seed), 0
    kinds: tuple[Callable[[int], bytes], ...] = (mix.text, mix.pages, mix.random)
    with path.open("xb") as file:
        os.truncate(file.fileno(), size_bytes)
        for number, at in enumerate(range(0, size_bytes, EXTENT_BYTES)):
            if number % 4 == 3:
                continue
            length = min(EXTENT_BYTES, size_bytes - at)
            # Every sixteenth extent ends in allocated zeroes, as freed space of a file system.
            kept = length // 2 if number % 16 == 0 else length
            held += os.pwrite(file.fileno(), kinds[number % 4](kept).ljust(length, b"\0"), at)
        os.fsync(file.fileno())
    return held


def make_tree(root: Path, files: int, seed: int = 1) -> int:
    """Write a tree of small files, a hundred a folder; returns their bytes."""
    mix, held = Mix(seed), 0
    for number in range(files):
        folder = root / f"{number // 10_000:02}" / f"{number // 100 % 100:02}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        content = mix.any(mix.small_size())
        held += (folder / f"file-{number:06}").write_bytes(content)
    return held
