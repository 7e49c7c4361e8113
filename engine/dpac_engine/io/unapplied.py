"""Acknowledged changes of one volume that its file could not take: set aside from the spool, so that the spool need not wait.

A file of records as they lie in the spool (docs/journal-format.md), one after the other. It is there until the volume's
own file has all of it, durably.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dpac_api.errors import Corruption
from dpac_engine.core import records
from dpac_engine.core.records import ALIGNMENT_BYTES, Header
from dpac_engine.io.files import make_folder, replace_file

Record = tuple[Header, memoryview]
ASIDE = "unapplied"
"""The file's name in its member's folder."""


def set_aside(path: Path, changes: Iterable[Record]) -> None:
    """Write the records to a new file, durable when this returns. Blocks. Raises OSError."""
    text = bytearray()
    for header, payload in changes:
        text += records.encode_header(
            header.kind, header.flags, header.incarnation, header.member, header.lsn, header.offset, header.length,
            header.stamp, header.shard_tag, header.epoch, payload,
        )  # fmt: skip
        text += payload
        text += bytes(-len(payload) % ALIGNMENT_BYTES)
    make_folder(path.parent)
    replace_file(path, bytes(text))


def read_aside(path: Path) -> Iterator[Record]:
    """The records of a file that was set aside; none if there is none. Corruption if it is damaged."""
    view = memoryview(path.read_bytes() if path.exists() else b"")
    at = 0
    while at < len(view):
        header = records.decode_header(view, at)
        if header is None:
            raise Corruption(
                f"{path} is damaged at byte {at}: changes of the volume are lost. Restore it (`dpac restore`)."
            )
        yield header, records.payload_of(view, at, header)
        at += records.stored_bytes(header.payload_bytes)
