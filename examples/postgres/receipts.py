"""A client outside of the database that writes down which transactions it was told are safe.

The log has a line `NUMBER SENT ACKNOWLEDGED` for every COMMIT that was answered. It lies outside what is protected, so
that a recovered database can be held against it: everything acknowledged by the recovered moment must be in it, and
nothing that was sent only afterwards may be.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

SCHEMA = "CREATE TABLE receipts (number bigint PRIMARY KEY, sent timestamptz NOT NULL)"
LISTED = "SELECT number || ' ' || to_char(sent AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM receipts"
"""Every receipt of a database as `NUMBER SENT`."""
_NAMED_MAX = 10


@dataclass(frozen=True)
class Receipt:
    """One transaction that the client was told is safe."""

    number: int
    sent: datetime
    acknowledged: datetime


def record(psql: Sequence[str], who: Mapping[str, Any], first: int, log: Path, stop: threading.Event) -> None:
    """Commit receipt after receipt through one `psql`, run as `who`, until told to stop or the server is gone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", buffering=1) as lines,
        subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, **who) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        number = first
        while not stop.is_set() and _commit(client.stdin, client.stdout, number, lines):
            number += 1
        client.stdin.close()


def _commit(to_client: IO[str], from_client: IO[str], number: int, log: IO[str]) -> bool:
    """Commit one receipt and write it down; False if the server or the client is gone."""
    sent = now()
    try:
        to_client.write(f"INSERT INTO receipts VALUES ({number}, '{sent}') RETURNING number;\n")
        answer = from_client.readline().strip()
    except OSError:
        return False
    if answer != str(number):
        return False
    log.write(f"{number} {sent} {now()}\n")
    return True


def read_log(log: Path) -> Iterator[Receipt]:
    """The receipts in a log. A last line cut short by a crash told nobody anything."""
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            number, sent, acknowledged = line.split()
            yield Receipt(int(number), datetime.fromisoformat(sent), datetime.fromisoformat(acknowledged))


def parse_listing(lines: Iterable[str]) -> dict[int, datetime]:
    """Receipts of a database, number -> sent, from what `LISTED` prints."""
    return {int(number): datetime.fromisoformat(sent) for number, sent in (line.split() for line in lines)}


def compare(present: Mapping[int, datetime], logged: Iterable[Receipt], by: datetime) -> list[str]:
    """What is wrong with a database that shall be of the moment `by`: receipts lost, or from later. Nothing if all is well."""
    lost = [receipt.number for receipt in logged if receipt.acknowledged <= by and receipt.number not in present]
    later = [number for number, sent in present.items() if sent > by]
    moment = by.isoformat()
    return [
        f"{len(numbers)} transactions {what} {moment} {verdict}: {_some(numbers)}"
        for numbers, what, verdict in ((lost, "acknowledged by", "are missing"), (later, "sent after", "are there"))
        if numbers
    ]


def _some(numbers: Sequence[int]) -> str:
    named = ", ".join(str(number) for number in sorted(numbers)[:_NAMED_MAX])
    return f"{named} ..." if len(numbers) > _NAMED_MAX else named


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
