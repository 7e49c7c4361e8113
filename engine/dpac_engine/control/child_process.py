"""What a child of the supervisor is given, and what it does before anything else."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ChildArguments:
    """One child's part. Descriptors are inherited from the supervisor."""

    name: str
    """`control` or `worker-N`: also the name of its log."""
    data: str
    supervisor_pid: int
    workers: int
    tree_fd: int
    """The data folder's lock, held until the last process of the site is gone."""
    ready_fd: int
    """A byte written here says that it serves."""
    index: int = 0
    """The worker's number."""
    rest_fd: int = -1
    rpc_fd: int = -1
    nbd_fd: int = -1
    nbd_tcp_fd: int = -1
    orders_fd: int = -1
    """A worker in waiting reads here whose place it takes."""
    lent_fds: tuple[int, ...] = ()
    """The sockets of every worker, for one in waiting."""
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    plaintext: bool = False
    log_files: bool = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What it inherits."""
        own = (self.tree_fd, self.ready_fd, self.rest_fd, self.rpc_fd, self.nbd_fd, self.nbd_tcp_fd, self.orders_fd)
        every = dict.fromkeys((*own, *self.lent_fds))
        return tuple(descriptor for descriptor in every if descriptor >= 0)

    @property
    def log_folder(self) -> Path | None:
        """Where it logs; None: standard error."""
        return Path(self.data) / "log" if self.log_files else None

    def to_json(self) -> str:
        """For its command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ChildArguments:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "lent_fds": tuple(fields["lent_fds"])})


def begin(arguments: ChildArguments) -> None:
    """Tie this process to its supervisor, keep what it inherited from its own children, and say where it is if it crashes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != arguments.supervisor_pid:
        sys.exit(1)  # the supervisor died before the tie was made
    for descriptor in arguments.descriptors:
        os.set_inheritable(descriptor, False)
    faulthandler.enable()


def stand_by(arguments: ChildArguments) -> ChildArguments:
    """Say that everything is loaded and wait; returns whose place to take. Ends with the supervisor."""
    os.write(arguments.ready_fd, b"s")
    with open(arguments.orders_fd, "rb") as orders:
        order = orders.readline()
    if not order.endswith(b"\n"):
        sys.exit(0)
    chosen = ChildArguments.from_json(order.decode())
    for descriptor in set(arguments.lent_fds) - set(chosen.descriptors):
        os.close(descriptor)
    return chosen


def say_ready(arguments: ChildArguments) -> None:
    """Tell the supervisor that this process serves."""
    os.write(arguments.ready_fd, b"1")
    os.close(arguments.ready_fd)
