"""`dpac serve`, `dpac serve --detach` and `dpac stop`, as the CLI calls them."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from dpac_api.contexts import Context, read_contexts, write_context
from dpac_api.errors import DpacError, Invalid, NotFound, Temporary, TimedOut, Unreachable, from_wire
from dpac_engine.control.serve_options import ServeOptions
from dpac_engine.control.site import Site, supervisor_pid
from dpac_engine.control.supervisor_report import SupervisorReport
from dpac_engine.io.files import make_folder

SUPERVISOR = (sys.executable, "-m", "dpac_engine.control.supervisor")
START_SECONDS_MAX = 120.0
"""A process that dies is told of at once; this bounds a host that is very slow."""
STOP_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.02
_OUTPUT_BYTES_MAX = 2**20


@dataclass(frozen=True)
class Endpoint:
    """Where a running site is reached: `run/endpoint.json`."""

    url: str
    site_uid: str
    name: str
    token_file: str
    nbd: list[dict[str, Any]]

    @classmethod
    def read(cls, site: Site) -> Endpoint:
        """Unreachable if the site never ran."""
        try:
            fields = json.loads(site.endpoint_file.read_bytes())
            return cls(**{key: fields[key] for key in ("url", "site_uid", "name", "token_file", "nbd")})
        except (OSError, ValueError, KeyError) as error:
            raise Unreachable(
                f"{site.endpoint_file} does not say where the site listens. Run `dpac serve` again."
            ) from error


def serve(
    options: ServeOptions, *, detach: bool, say: Callable[[str], None], supervisor: Sequence[str] = SUPERVISOR
) -> int:
    """What `dpac serve` does; returns its exit status. In the foreground this process becomes the supervisor.

    Errors: Invalid for a wrong option; with `detach` also whatever kept the site from starting.
    """
    options = options.checked()
    if not detach:
        become_supervisor(options, supervisor)
    if supervisor_pid(Path(options.data)) is not None:
        endpoint = _await_health(options, None)
        say(f"The site {endpoint.name} ({endpoint.site_uid}) runs already at {endpoint.url}.")
    else:
        endpoint = start_detached(options, supervisor)
        say(f"The site {endpoint.name} ({endpoint.site_uid}) serves at {endpoint.url}.")
    for exports in endpoint.nbd:
        tcp = f" and {exports['tcp']}" if exports["tcp"] else ""
        say(f"  exports of worker {exports['worker']}: {exports['unix']}{tcp}")
    say(f"  token: {endpoint.token_file}")
    say(note_context(endpoint))
    return 0


def become_supervisor(options: ServeOptions, supervisor: Sequence[str] = SUPERVISOR) -> NoReturn:
    """Replace this process by the supervisor: it keeps the pid, which a service manager watches, and sheds what the
    CLI had loaded."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(supervisor[0], [*supervisor, options.to_json()])  # noqa: S606 (no shell is the point)


def start_detached(options: ServeOptions, supervisor: Sequence[str] = SUPERVISOR) -> Endpoint:
    """Start the supervisor in a session of its own; returns once every process serves, with where.

    Raises whatever kept it from starting, or TimedOut with the end of its logs.
    """
    data = Path(options.data)
    try:
        make_folder(data)
        (data / "log").mkdir(mode=0o700, exist_ok=True)
        output = _open_output(data / "log" / "output.log")
    except OSError as error:
        raise Invalid(f"The data folder {data} cannot be used ({error.strerror}). Choose another --data.") from error
    in_files = ServeOptions(**{**options.__dict__, "log_files": True})
    with open(output, "ab") as stream:
        began = stream.tell()
        process = subprocess.Popen(
            [*supervisor, in_files.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            cwd="/",
        )
    return _await_health(options, (process, began))


def stop(data: Path, seconds_max: float = STOP_SECONDS_MAX) -> bool:
    """Stop the site: control ends, workers drain, everything stays on disk. False if it did not run.

    TimedOut if it does not end in time.
    """
    data = data.expanduser().absolute()
    pid = supervisor_pid(data)
    if pid is None:
        return False
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if supervisor_pid(data) == pid:  # it is still the one: the pid was not given to another process meanwhile
            signal.pidfd_send_signal(process, signal.SIGTERM)
            ended, _, _ = select.select([process], [], [], seconds_max)
            if not ended:
                raise TimedOut(
                    f"The backend (pid {pid}) did not end within {seconds_max:.0f} s. Look at {data / 'log'}."
                )
    except PermissionError as error:
        raise Invalid(f"The backend (pid {pid}) belongs to another user. Stop it as that user.") from error
    finally:
        os.close(process)
    return True


def note_context(endpoint: Endpoint) -> str:
    """Write the context of this site, unless its name stands for another site; returns what was done, as a sentence.

    It becomes the current one only where there is none: a program must not change sites because one was started.
    """
    known = read_contexts().contexts.get(endpoint.name)
    if known is not None and known.site_uid not in (None, endpoint.site_uid):
        return (
            f"The context {endpoint.name!r} names another site ({known.site_uid}) and was left alone; "
            "`dpac context` makes one for this site."
        )
    context = Context(
        endpoint=endpoint.url,
        token_file=endpoint.token_file,
        ca_file=known.ca_file if known else None,
        site_uid=endpoint.site_uid,
    )
    path = write_context(endpoint.name, context, make_current=False)
    current = read_contexts().current
    tail = "" if current == endpoint.name else f"; the current one is {current!r}"
    return f"  context: {endpoint.name} in {path}{tail}"


# ---------------------------------------------------------------- waiting


def _await_health(options: ServeOptions, started: tuple[subprocess.Popen[bytes], int] | None) -> Endpoint:
    """Until every process of the site in the data folder serves, and REST answers."""
    data = Path(options.data)
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        if started is not None and started[0].poll() is not None:
            raise _failed(started[0].returncode, data, started[1])
        # The lock first: an endpoint file may be of an earlier run.
        pid = supervisor_pid(data)
        if pid is not None and (started is None or pid == started[0].pid):
            endpoint = _healthy(data, pid)
            if endpoint is not None:
                return endpoint
            if crashing := _crashing(data, pid):
                raise DpacError(
                    f"The process {crashing} of the backend dies again and again; the others go on, and `dpac stop` ends "
                    f"them. {_log_tail(data)}"
                )
        if time.monotonic() > deadline:
            raise TimedOut(f"The backend did not answer within {START_SECONDS_MAX:.0f} s. {_log_tail(data)}")
        time.sleep(_POLL_SECONDS)


def _healthy(data: Path, pid: int) -> Endpoint | None:
    try:
        site = Site.read(data)
        report = SupervisorReport.read(site.supervisor_file)
        if report is None or report.pid != pid or not report.all_serve:
            return None
        endpoint = Endpoint.read(site)
        check_health(endpoint.url)
        return endpoint
    except (NotFound, Temporary):
        return None


def check_health(url: str, timeout_seconds: float = 2.0) -> None:
    """Unreachable unless `/healthz` there answers, and the error that it answers with if it is not well."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # Only whether it answers is asked; no token is sent, so whose certificate it is does not matter here.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout_seconds, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_seconds)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        if answer.status != 200:
            raise from_wire(answer.status, json.loads(answer.read()))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"No backend answers at {url}: {error}.") from error
    finally:
        connection.close()


def _crashing(data: Path, pid: int) -> str | None:
    """The child of this supervisor that does not come to serve, if there is one."""
    try:
        report = SupervisorReport.read(Site.read(data).supervisor_file)
    except DpacError:
        return None
    # A report of an earlier run says nothing of this one.
    crashing = report.crashing() if report is not None and report.pid == pid else {}
    return next((name for name, child in crashing.items() if child.state != "serving"), None)


def _failed(status: int, data: Path, began: int) -> DpacError:
    """Why the supervisor ended at once: its last line is the error as the API would tell it."""
    try:
        with open(data / "log" / "output.log", "rb") as file:
            file.seek(began)
            said = file.read(_OUTPUT_BYTES_MAX).decode(errors="replace").strip().splitlines()
    except OSError:
        said = []
    if said and said[-1].startswith('{"error"'):
        return from_wire(status, json.loads(said[-1]))
    return DpacError(f"The backend ended with status {status}. {_log_tail(data)}")


def _log_tail(data: Path, lines: int = 5) -> str:
    """The newest log's last lines, for a message."""
    logs = sorted((data / "log").glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs:
        tail = path.read_text(errors="replace").splitlines()[-lines:]
        if tail:
            return f"The end of {path}:\n" + "\n".join(tail)
    return f"There is nothing in {data / 'log'}."


def _open_output(path: Path) -> int:
    """Where what is not logged goes: tracebacks of a process that could not begin, reports of the fault handler."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_size > _OUTPUT_BYTES_MAX:
        os.ftruncate(descriptor, 0)
    return descriptor
