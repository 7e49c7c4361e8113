"""A worker that has loaded everything and waits: it takes the place of one that died, without the time that loading takes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpac_engine.control.child_process import ChildArguments


@dataclass
class Standby:
    """The process in waiting, as the supervisor sees it."""

    process: subprocess.Popen[bytes]
    ready: int
    """Readable when it has loaded, and again when it serves in somebody's place."""
    waiting: bool
    """It has loaded."""
    _orders: int
    _ready_fd: int

    @classmethod
    def start(cls, entry: Sequence[str], common: ChildArguments, sockets: Sequence[int]) -> Standby:
        """Start one. `sockets`: those of every worker, since it may become any of them. Raises OSError."""
        orders_read, orders_write = os.pipe()
        ready_read, ready_write = os.pipe()
        arguments = replace(
            common, name="standby", ready_fd=ready_write, orders_fd=orders_read, lent_fds=tuple(sockets)
        )
        try:
            process = subprocess.Popen(
                [*entry, "worker", arguments.to_json()],
                stdin=subprocess.DEVNULL,
                pass_fds=arguments.descriptors,
                process_group=0,
            )
        except OSError:
            os.close(orders_write)
            os.close(ready_read)
            raise
        finally:
            os.close(orders_read)
            os.close(ready_write)
        return cls(process, ready_read, False, orders_write, ready_write)

    def note_ready(self) -> None:
        """`ready` became readable: it has loaded, or it died and this is the end of the pipe."""
        self.waiting = os.read(self.ready, 1) == b"s"

    def become(self, arguments: ChildArguments) -> bool:
        """Make it the worker of these arguments; False if it died meanwhile."""
        order = replace(arguments, ready_fd=self._ready_fd).to_json().encode() + b"\n"
        try:
            os.write(self._orders, order)
        except BrokenPipeError:
            return False
        os.close(self._orders)
        return True

    def end(self) -> None:
        """End it."""
        os.close(self._orders)
        os.close(self.ready)
        self.process.kill()
        self.process.wait()
