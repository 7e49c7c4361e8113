"""What the disk and its file system do with nothing above them: no copy to a folder, and no restore, is faster.

Creating files is a row of its own: ext4 takes several times as long where many files were deleted a moment ago.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from bench.row import Row
from dpac_engine.io.direct import aligned_buffer, opened_direct
from dpac_engine.io.members.tree_restore import sync_all

_WRITE_BYTES = 4 * 2**20
_FILE_BYTES = 8192
_FILES_PER_FOLDER = 100


def write_rows(folder: Path, amount_bytes: int = 2**30) -> Iterator[Row]:
    """One writer, large writes, synced at the end."""
    path = folder / "bare"
    for title, is_direct in (("past the page cache", True), ("through the page cache", False)):
        with path.open("xb") as file, opened_direct(file.fileno()) as direct:
            if is_direct and direct is None:
                path.unlink()
                continue
            data = aligned_buffer(_WRITE_BYTES)
            data[:] = os.urandom(_WRITE_BYTES)
            began = time.monotonic()
            for at in range(0, amount_bytes, _WRITE_BYTES):
                os.pwrite(direct if is_direct and direct is not None else file.fileno(), data, at)
            os.fsync(file.fileno())
            seconds = time.monotonic() - began
        path.unlink()
        yield Row.alone(f"bare disk: writes of 4 MiB {title}", amount_bytes / 2**20 / seconds, "MiB/s")


def create_row(folder: Path, files: int = 5_000) -> Row:
    """Small files made and written one by one, synced together at the end."""
    root, data = folder / "bare", os.urandom(_FILE_BYTES)
    root.mkdir()
    began = time.monotonic()
    for number in range(files):
        if number % _FILES_PER_FOLDER == 0:
            inside = root / str(number)
            inside.mkdir()
        descriptor = os.open(inside / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, data)
        os.close(descriptor)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    sync_all(descriptor)
    os.close(descriptor)
    seconds = time.monotonic() - began
    shutil.rmtree(root)
    return Row.alone(f"bare disk: {files:,} files of 8 KiB made and synced", files / seconds, "files/s")
