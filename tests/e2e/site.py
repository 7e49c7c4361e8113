"""A real site, started and driven as a person does: `dpac serve`, `dpac group apply`, `dpac mount` and so on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from dpac_api.client import Client as RestClient
from dpac_api.errors import NotFound, Unrecoverable
from dpac_api.models import Checkpoint, Mount
from dpac_api.resolve import resolve
from dpac_engine.control import serve
from tests.nbd.client import FLUSH, Client, request
from tests.nbd.client import write as write_request
from tests.processes.backend import Backend
from tests.tools import require_tool

MIB = 2**20
DPAC = Path(sys.executable).parent / "dpac"
SECONDS_MAX = 120
"""Deadline of anything that is waited for: long, because the machine may be busy with other tests."""


class LiveSite(Backend):
    """`with LiveSite(folder) as site:` — a site in a folder, made by the command line alone."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "site", serve.SUPERVISOR)
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DPAC_")},
            "DPAC_CONFIG_DIR": str(folder / "config"),
            "COLUMNS": "200",
        }
        self._rest: RestClient | None = None
        self._began: dict[Path, int] = {}
        self._options: tuple[str, ...] = (
            "--listen",
            "127.0.0.1:0",
            "--nbd-tcp",
            "127.0.0.1:0",
            "--workers",
            f"{workers}",
        )

    def __enter__(self) -> LiveSite:
        return self

    # ------------------------------------------------------------------ processes

    def start(self) -> serve.Endpoint:
        """`dpac serve --detach`, on free ports the first time and on the same ones afterwards."""
        self.dpac("serve", "--detach", "--data", str(self.data), *self._options)
        endpoint = serve.Endpoint.read(self.site)
        exports = str(endpoint.nbd[0]["tcp"])
        self._options = ("--nbd-tcp", exports, *self._options[-2:])
        return endpoint

    def print_logs(self) -> None:
        """What the processes have logged since the last call; pytest shows it if the test failed."""
        for path in sorted((self.data / "log").glob("*.log")):
            text = path.read_text(errors="replace")
            print(f"--- {path.name}\n{text[self._began.get(path, 0) :][-6000:]}")
            self._began[path] = len(text)

    # ------------------------------------------------------------------ the command line and REST

    def dpac(self, *arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command; its exit status must be as said (None: any), and no traceback may be seen whatever it is."""
        done = subprocess.run(
            [str(DPAC), *arguments], env=self.environ, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        said = f"dpac {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in said, said
        assert status is None or done.returncode == status, said
        return done

    def dpac_json(self, *arguments: str, status: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self.dpac(*arguments, "--json", status=status).stdout)

    @property
    def rest(self) -> RestClient:
        """The site's REST API. It waits for a backend that is being restarted."""
        if self._rest is None:
            endpoint = resolve(environ=self.environ)
            self._rest = RestClient(endpoint, site_uid=endpoint.site_uid, retry_seconds=SECONDS_MAX)
        return self._rest

    # ------------------------------------------------------------------ groups

    def protect(
        self,
        group: str,
        members: dict[str, Any],
        *,
        rpo: str = "1s",
        journal: dict[str, Any] | None = None,
        leg: dict[str, str] | None = None,
    ) -> None:
        """Declare a group with a leg to `copies`, a folder unless there is such a target, and wait until it is protected."""
        if not any(target.name == "copies" for target in self.rest.targets()):
            self.dpac("target", "add", "copies", "--path", str(self.folder / "copies"))
        declaration = self.folder / f"{group}.yaml"
        declaration.write_text(
            yaml.safe_dump(
                {
                    "name": group,
                    "members": members,
                    "replication": {"copies": {"target": "copies", "rpo": rpo, **(leg or {})}},
                    "journal": {"history": "1h", "spool_max": "512MiB", **(journal or {})},
                }
            )
        )
        self.dpac("group", "apply", "-f", str(declaration))
        until(lambda: self.rest.group_status(group).protected, f"{group} is protected")

    def protect_to(self, group: str, spec: dict[str, Any]) -> None:
        """Declare a group by its whole spec, and wait until it is protected."""
        declaration = self.folder / f"{group}.yaml"
        declaration.write_text(yaml.safe_dump({"name": group, **spec}))
        self.dpac("group", "apply", "-f", str(declaration))
        until(lambda: self.rest.group_status(group).protected, f"{group} is protected")

    def apply_leg(self, group: str, leg: dict[str, str]) -> None:
        """Declare the group with another leg to `copies`."""
        declaration = self.folder / f"{group}.yaml"
        declared = yaml.safe_load(declaration.read_text())
        declared["replication"] = {"copies": {"target": "copies", **leg}}
        declaration.write_text(yaml.safe_dump(declared))
        self.dpac("group", "apply", "-f", str(declaration))

    def protect_volume(self, group: str, size_bytes: int, *, rpo: str = "1s") -> Path:
        """A group of one volume, `disk`; returns the volume's file."""
        path = self.folder / f"{group}.raw"
        self.protect(
            group, {"disk": {"kind": "volume", "path": str(path), "size": f"{size_bytes // 1024}KiB"}}, rpo=rpo
        )
        return path

    def wait_drained(self, group: str) -> None:
        """Until everything a client wrote is in the volumes' own files."""
        until(
            lambda: not any(member.unapplied_bytes for member in self.rest.group_status(group).members.values()),
            f"the volumes of {group} hold all that was written",
        )

    def mark_directory(self, group: str, member: str, tag: str) -> Checkpoint:
        """A tagged checkpoint that holds a directory as it is now, once it is at the target.

        One that is not asked for would not be shipped for minutes if nothing in it is new.
        """
        now = datetime.now(UTC)

        def captured() -> bool:
            as_of = self.rest.group_status(group).members[member].as_of
            return as_of is not None and as_of > now

        until(captured, f"{group}/{member} is captured for {tag}")
        self.dpac("checkpoint", group, "--tag", tag)
        return self.wait_for_checkpoint(group, f"tag:{tag}", as_of_member=member, after=now)

    def wait_for_checkpoint(
        self, group: str, selector: str = "latest", *, after: datetime | None = None, as_of_member: str | None = None
    ) -> Checkpoint:
        """Until the checkpoint that a selector means is at the target, and was taken after a moment.

        With `as_of_member` that member's cut must be from after the moment too.
        """
        found: list[Checkpoint] = []

        def listed() -> bool:
            with suppress(Unrecoverable, NotFound):
                checkpoint = self.rest.checkpoint(group, selector)
                cut = checkpoint.cuts[as_of_member].as_of if as_of_member else None
                if after is None or (checkpoint.time > after and (cut is None or cut > after)):
                    found.append(checkpoint)
            return bool(found)

        until(listed, f"checkpoint {selector} of {group}, after {after}, is at the target")
        return found[0]

    @contextmanager
    def mounted(self, group: str, selector: str, member: str | None = None) -> Iterator[Mount]:
        """A checkpoint opened for use; one that is still on its way to the target is waited for."""
        self.wait_for_checkpoint(group, selector)
        mount = self.rest.mount(group, at=selector, member=member)
        try:
            yield mount
        finally:
            self.rest.unmount(mount.id)

    # ------------------------------------------------------------------ exports

    def uri(self, export: str) -> str:
        """An export's URI on the unix socket."""
        return self.site.nbd_uri(0, export)

    def tcp_uri(self, export: str) -> str:
        """An export's URI over TCP, where it is acknowledged when durable."""
        return f"nbd://{serve.Endpoint.read(self.site).nbd[0]['tcp']}/{export}"


@contextmanager
def connected(uri: str) -> Iterator[Client]:
    """A client of ours at a `nbd+unix` URI, after the handshake."""
    parts = urlsplit(uri)
    with Client(parse_qs(parts.query)["socket"][0], SECONDS_MAX) as client:
        yield client.enter(unquote(parts.path.lstrip("/")))


def contents(uri: str) -> bytes:
    """All bytes of an export, read by our own client."""
    found = bytearray()
    with connected(uri) as client:
        while len(found) < client.size_bytes:
            found += read(client, len(found), min(MIB, client.size_bytes - len(found)))
    return bytes(found)


def read(client: Client, offset: int, length: int) -> bytes:
    """One read, which must succeed."""
    client.read(offset, offset, length)
    reply = client.reply()
    assert reply.error == 0, f"a read at {offset} failed with {reply.error} {reply.message}"
    return reply.data


def write(client: Client, offset: int, data: bytes) -> None:
    """One write, acknowledged when this returns."""
    client.send(write_request(offset, offset, data))
    reply = client.reply()
    assert reply.error == 0, f"a write at {offset} failed with {reply.error} {reply.message}"


def flush(client: Client) -> None:
    """One FLUSH, answered when this returns."""
    client.send(request(FLUSH, 1))
    assert client.reply().error == 0


def until(condition: Callable[[], object], what: str, seconds_max: float = SECONDS_MAX) -> None:
    """Wait for a condition; fails, saying `what` did not come, after a deadline."""
    deadline = time.monotonic() + seconds_max
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds_max:.0f} s in vain until {what}"
        pause.wait(0.05)


def run(tool: str, *arguments: str, status: int | None = 0, seconds_max: float = SECONDS_MAX) -> str:
    """Run a tool and return what it printed; its exit status must be as said (None: anything but 0)."""
    done = subprocess.run(
        [require_tool(tool), *arguments], capture_output=True, text=True, timeout=seconds_max, check=False
    )
    said = f"{tool} {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == status if status is not None else done.returncode != 0, said
    return done.stdout + done.stderr


def qemu_io(target: str, *commands: str, status: int | None = 0) -> str:
    """Run commands of qemu-io against a URI or, if it holds `driver=`, image options; a failed pattern fails."""
    words = [word for command in commands for word in ("-c", command)]
    how = ["--image-opts", *words, target] if "driver=" in target else ["-f", "raw", *words, target]
    told = run("qemu-io", *how, status=status)
    assert "Pattern verification failed" not in told, told
    return told
