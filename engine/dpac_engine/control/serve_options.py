"""What `dpac serve` is asked for, checked before anything is started. Standard library only."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from dpac_api.errors import Invalid
from dpac_engine.control.sockets import Address

REST_PORT = 8700
"""Tried first when no address is asked for."""
WORKERS_MAX = 64


def default_workers() -> int:
    """One fewer than the cores this process may use, from 1 to 8."""
    return min(8, max(1, len(os.sched_getaffinity(0)) - 1))


@dataclass(frozen=True)
class ServeOptions:
    """How a site is served. `checked()` makes one usable."""

    data: str
    """The data folder."""
    name: str = "local"
    """The site's name; counts when the site is made."""
    listen: str | None = None
    """REST's `IP:PORT`; None: 127.0.0.1 and the port of last time, or 8700, or any free one."""
    workers: int | None = None
    """How many worker processes; None: one fewer than there are cores, at most 8."""
    run_dir: str | None = None
    """Where the sockets are; None: where they were, or `DATA/run`."""
    nbd_tcp: str | None = None
    """`IP:PORT` of worker 0's exports over TCP, the next worker's on the next port; None: unix sockets only."""
    tls_cert: str | None = None
    """PEM certificate chain for REST and for NBD over TCP."""
    tls_key: str | None = None
    """Its PEM private key."""
    tls_ca: str | None = None
    """PEM certificates of the authority that clients of NBD over TCP must have theirs from."""
    plaintext: bool = False
    """Serve addresses that other hosts reach without TLS."""
    log_files: bool = False
    """Log to `DATA/log/*.log` instead of standard error."""

    def checked(self) -> ServeOptions:
        """The options with absolute paths and every default filled in. Invalid, naming the option, if one is wrong."""
        workers = default_workers() if self.workers is None else self.workers
        if not 1 <= workers <= WORKERS_MAX:
            raise Invalid(f"--workers {workers} is out of bounds; it may be from 1 to {WORKERS_MAX}.")
        self._check_files()
        if self.listen is not None:
            self._check_listen(Address.parse(self.listen, "--listen"))
        if self.nbd_tcp is not None:
            self._check_nbd_tcp(Address.parse(self.nbd_tcp, "--nbd-tcp"))
        return ServeOptions(
            data=_absolute(self.data),
            name=self.name,
            listen=self.listen,
            workers=workers,
            run_dir=self.run_dir and _absolute(self.run_dir),
            nbd_tcp=self.nbd_tcp,
            tls_cert=self.tls_cert and _absolute(self.tls_cert),
            tls_key=self.tls_key and _absolute(self.tls_key),
            tls_ca=self.tls_ca and _absolute(self.tls_ca),
            plaintext=self.plaintext,
            log_files=self.log_files,
        )

    def _check_files(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise Invalid("--tls-cert and --tls-key belong together. Give both, or neither.")
        if self.tls_ca is not None and self.tls_cert is None:
            raise Invalid("--tls-ca checks the clients of a TLS server. Give --tls-cert and --tls-key too.")
        for option, file in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key), ("--tls-ca", self.tls_ca)):
            if file is not None and not os.access(file, os.R_OK):
                raise Invalid(f"{option} {file} cannot be read. Correct the path or its permissions.")

    def _check_listen(self, address: Address) -> None:
        if not (address.stays_on_this_host or self.tls_cert or self.plaintext):
            raise Invalid(
                f"--listen {address} can be reached from other hosts, and without TLS tokens would cross the network "
                "in plain. Give --tls-cert and --tls-key, use 127.0.0.1, or say --plaintext."
            )

    def _check_nbd_tcp(self, address: Address) -> None:
        """NBD knows no tokens: a client's certificate is all that tells who it is."""
        if not (address.stays_on_this_host or self.tls_ca or self.plaintext):
            raise Invalid(
                f"--nbd-tcp {address} can be reached from other hosts, and whoever reaches it may read and write every "
                "volume. Give --tls-cert, --tls-key and --tls-ca, so that clients prove who they are; use 127.0.0.1; or "
                "say --plaintext."
            )

    def to_json(self) -> str:
        """For the command line of another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServeOptions:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
