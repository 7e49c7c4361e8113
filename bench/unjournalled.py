"""The same NBD server with the journal off: writes go to the files directly, FLUSH is fdatasync.

python -m bench.unjournalled SOCKET FILE...    one export a file, by the name of the file without its suffix
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench.peers import listening
from dpac_engine.io.holes import punch_hole
from dpac_engine.io.nbd.export import Change, Export, Extent, as_os_error
from dpac_engine.io.nbd.server import Listener, NbdServer


class PlainFile:
    """An `Export` without a journal."""

    read_only = durable_acks = congested = False

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        self.size_bytes = path.stat().st_size

    def submit(self, changes: Sequence[Change]) -> None:
        """See `Export.submit`."""
        for _, offset, length, data in changes:
            if data is None:
                punch_hole(self._descriptor, offset, length)
            else:
                os.pwrite(self._descriptor, data, offset)

    def flush(self, done: Callable[[OSError | None], None]) -> None:
        """See `Export.flush`."""
        future = asyncio.get_running_loop().run_in_executor(None, os.fdatasync, self._descriptor)
        future.add_done_callback(lambda outcome: done(as_os_error(outcome.exception())))

    def read_now(self, offset: int, length: int) -> None:
        """See `Export.read_now`."""

    def read_blocking(self, offset: int, length: int) -> bytes:
        """See `Export.read_blocking`."""
        return os.pread(self._descriptor, length, offset)

    def extents_blocking(self, offset: int, length: int) -> list[Extent]:  # noqa: ARG002
        """See `Export.extents_blocking`."""
        return [Extent(length, False, False)]

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """See `Export.when_relieved`; never congested."""

    def opened(self, close: Callable[[], None]) -> None:
        """See `Export.opened`."""

    def closed(self, close: Callable[[], None]) -> None:
        """See `Export.closed`."""


class PlainFiles:
    """`Exports` of those files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Export] = {path.stem: PlainFile(path) for path in paths}

    def names(self) -> Sequence[str]:
        """See `Exports.names`."""
        return list(self._files)

    def find(self, name: str) -> Export | None:
        """See `Exports.find`."""
        return self._files.get(name)


async def _serve(address: str, paths: Sequence[Path]) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(address)
    sock.listen()
    server = NbdServer(PlainFiles(paths), [Listener(sock, durable_acks=False)])
    await server.start()
    await asyncio.Event().wait()


@contextmanager
def unjournalled(folder: Path, count: int, size_bytes: int) -> Iterator[list[str]]:
    """Such a server on that many new sparse files; their NBD URIs."""
    path, paths = folder / "plain.sock", [folder / f"plain{number}.raw" for number in range(count)]
    for file in paths:
        file.touch()
        os.truncate(file, size_bytes)
    command = [sys.executable, "-m", "bench.unjournalled", str(path), *map(str, paths)]
    try:
        with listening(command, path):
            yield [f"nbd+unix:///{file.stem}?socket={path}" for file in paths]
    finally:
        for file in paths:
            file.unlink()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], [Path(name) for name in sys.argv[2:]]))
