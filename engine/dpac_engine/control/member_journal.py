"""The journal as a directory, or any other member of keys and values, sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dpac_api.errors import DpacError
from dpac_engine.core.records import KeyChange, encode_key_change
from dpac_engine.io.spool import Entry, Spool


class MemberJournal:
    """Of one member (a `ports.JournalWriter`)."""

    def __init__(self, spool: Spool, ordinal: int, hasten: Callable[[], None]) -> None:
        self._spool = spool
        self._ordinal = ordinal
        self._hasten = hasten
        """Called once something that was put is durable: legs can take it while the rest is captured."""
        self._open = asyncio.Event()
        self._open.set()

    def hold(self, on: bool) -> None:
        """Admit no changes until told otherwise."""
        if on:
            self._open.clear()
        else:
            self._open.set()

    @property
    def held(self) -> bool:
        """It admits none."""
        return not self._open.is_set()

    async def admitted(self) -> None:
        """See `JournalWriter.admitted`."""
        while self.held:  # another hold may have begun before this came to its turn
            await self._open.wait()

    def put(self, entries: Sequence[KeyChange]) -> int:
        """See `JournalWriter.put`: a mark is appended by the same thread, so none can come between."""
        encoded = [encode_key_change(change) for change in entries]
        last = len(encoded) - 1
        run = [
            Entry(kind, 0 if at == last else 1, self._ordinal, 0, 0, payload)
            for at, (kind, payload) in enumerate(encoded)
        ]
        try:
            self._spool.append(run)
        except OSError as error:
            raise _failed(error) from error
        self._spool.when_durable(self._spool.head_lsn, lambda _: self._hasten())
        return self._spool.head_lsn

    async def wait_durable(self, lsn: int) -> None:
        """See `JournalWriter.wait_durable`."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(error: OSError | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(_failed(error))

        self._spool.when_durable(lsn, settle)
        await done
        self._hasten()  # a capture waits last: from here on it may be the one that makes the member whole


def _failed(error: OSError) -> DpacError:
    return DpacError(f"The journal failed: {error.strerror or error}. It is captured once the journal works again.")
