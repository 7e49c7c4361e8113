"""Writes past the page cache: the same bytes, whatever their size and offset, offered or not."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from dpac_engine.io.direct import ALIGNMENT_BYTES, BUFFER_BYTES, aligned_buffer, opened_direct, write_direct
from dpac_engine.io.stores.filesystem import DIRECT_BYTES_MIN, FilesystemStore


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, BUFFER_BYTES, 2 * BUFFER_BYTES + 12_289])
def test_the_aligned_beginning_is_written(tmp_path: Path, length: int) -> None:
    """Of what is offered all whole blocks, and it says how much."""
    data = os.urandom(length)
    with (tmp_path / "file").open("w+b") as file, opened_direct(file.fileno()) as descriptor:
        if descriptor is None:
            pytest.skip("this file system offers no direct writes")
        assert write_direct(descriptor, data, 8192, aligned_buffer(length)) == length - length % ALIGNMENT_BYTES
    assert (tmp_path / "file").read_bytes()[8192:] == data[: length - length % ALIGNMENT_BYTES]


def test_an_unaligned_offset_is_left_to_the_caller(tmp_path: Path) -> None:
    """Nothing is written there."""
    with (tmp_path / "file").open("w+b") as file, opened_direct(file.fileno()) as descriptor:
        if descriptor is None:
            pytest.skip("this file system offers no direct writes")
        assert write_direct(descriptor, bytes(8192), 512, aligned_buffer(8192)) == 0
    assert (tmp_path / "file").stat().st_size == 0


@pytest.mark.parametrize(
    "length", [DIRECT_BYTES_MIN - 1, DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, 3 * BUFFER_BYTES + 77]
)
def test_objects_of_every_size_are_what_was_put(tmp_path: Path, length: int) -> None:
    """Put and created, by the same store."""
    store, data = FilesystemStore(tmp_path), os.urandom(length)
    store.put("s/put", data)
    store.create("s/made", memoryview(data))
    assert store.get("s/put") == store.get("s/made") == data


@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_a_file_system_without_it_is_written_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whether it says so when the file is opened or at the first write."""
    refused: list[str] = []
    real = {"open": os.open, "pwrite": os.pwrite}

    def refuse(first: Any, second: Any, *rest: Any, **named: Any) -> Any:
        flags = second if call == "open" else fcntl.fcntl(first, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            refused.append(call)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real[call](first, second, *rest, **named)

    store, data = FilesystemStore(tmp_path), os.urandom(DIRECT_BYTES_MIN + 5)
    monkeypatch.setattr(os, call, refuse)
    store.put("s/a", data)
    assert refused
    assert store.get("s/a") == data


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a file system that does not offer direct writes."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (tmp_path / "file").open("w+b") as file, pytest.raises(OSError, match="No space"):
        write_direct(file.fileno(), bytes(8192), 0, aligned_buffer(8192))
