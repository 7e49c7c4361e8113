"""A client of a volume that writes all the time over one connection, and notices if it breaks."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from tests.nbd.client import Client, write

BLOCK_BYTES = 4096
BLOCKS = 256
WAIT_SECONDS_MAX = 60.0


class Writing:
    """`with Writing(uri) as client:` — 4 KiB after 4 KiB, each acknowledged before the next."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        (socket,) = parse_qs(parts.query)["socket"]
        self._client = Client(socket).enter(unquote(parts.path.removeprefix("/")))
        self._latest = datetime.min.replace(tzinfo=UTC)
        self._trouble: Exception | None = None
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._client.sock.close()

    def wrote_after(self, moment: datetime) -> bool:
        """Whether a write that began after a moment is acknowledged, over the first connection; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._trouble or self._latest > moment, WAIT_SECONDS_MAX)
            if self._trouble is not None:
                raise AssertionError("the client's connection broke") from self._trouble
            return self._latest > moment

    def _write_on(self) -> None:
        count = 0
        try:
            while not self._ended.wait(0.01):
                count += 1
                began = datetime.now(UTC)
                block = count.to_bytes(8, "big") * (BLOCK_BYTES // 8)
                self._client.send(write(count, count % BLOCKS * BLOCK_BYTES, block))
                reply = self._client.reply()
                assert (reply.cookie, reply.error) == (count, 0)
                self._note(began)
        except Exception as error:
            self._note(None, error)

    def _note(self, began: datetime | None, trouble: Exception | None = None) -> None:
        with self._changed:
            self._latest = began or self._latest
            self._trouble = trouble
            self._changed.notify_all()
