"""`dpac serve`: binds the sockets, starts control and the workers, and starts again what dies.

Standard library only, so that it is there at once and its memory is small. One thread: the kernel ends its children
when the thread that started them ends.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpac_api.errors import DpacError
from dpac_engine.control.child_process import ChildArguments
from dpac_engine.control.listening import Listening, listen
from dpac_engine.control.logs import log_to
from dpac_engine.control.serve_options import ServeOptions
from dpac_engine.control.site import Site, SiteLocks
from dpac_engine.control.standby import Standby
from dpac_engine.control.supervisor_report import ChildReport, SupervisorReport
from dpac_engine.control.systemd import notify
from dpac_engine.core.restarts import Restarts

ENTRY = (sys.executable, "-m", "dpac_engine.wiring")
"""Starts a child: followed by `control` or `worker` and its arguments as JSON."""
CONTROL_WAIT_SECONDS = 1.0
"""How long control waits for the workers at the first start."""
CONTROL_STOP_SECONDS = 10.0
STANDBY_DELAY_SECONDS = 1.0
"""How long everything serves before a worker in waiting takes time from it."""
CALM_CHECK_SECONDS = 5.0
"""How often it is looked whether a process that died again and again has calmed down."""
WORKER_STOP_SECONDS = 25.0
"""A worker drains for 20 s at most; then it is in the way."""

_log = logging.getLogger("dpac_engine.control.supervisor")


@dataclass
class Child:
    """One process to keep alive."""

    arguments: ChildArguments
    restarts: Restarts = field(default_factory=Restarts)
    process: subprocess.Popen[bytes] | None = None
    ready: int | None = None
    """Readable once it serves; None when it does, or does not run."""
    started_at: float | None = None
    ready_at: float | None = None
    due_at: float | None = 0.0
    """When to start it; None while it runs."""
    last_exit: str = ""

    @property
    def role(self) -> str:
        """`control` or `worker`."""
        return self.arguments.name.partition("-")[0]

    @property
    def sockets(self) -> list[int]:
        """Those of a worker."""
        own = (self.arguments.rpc_fd, self.arguments.nbd_fd, self.arguments.nbd_tcp_fd)
        return [descriptor for descriptor in own if descriptor >= 0]

    @property
    def start_seconds(self) -> float | None:
        """From its start until it served; None while it does not."""
        if self.ready_at is None or self.started_at is None:
            return None
        return round(self.ready_at - self.started_at, 3)

    @property
    def state(self) -> str:
        """`waiting`, `starting` or `serving`."""
        if self.process is None:
            return "waiting"
        return "starting" if self.ready_at is None else "serving"


class Supervisor:
    """Keeps the processes of one site alive until it is told to stop."""

    def __init__(
        self, site: Site, locks: SiteLocks, listening: Listening, options: ServeOptions, entry: Sequence[str] = ENTRY
    ) -> None:
        self._site = site
        self._entry = entry
        self._announced = False
        self._reported: SupervisorReport | None = None
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._standby: Standby | None = None
        self._standby_due_at: float | None = None
        self._common = common = ChildArguments(
            name="control",
            data=str(site.data),
            supervisor_pid=os.getpid(),
            workers=len(listening.workers),
            tree_fd=locks.tree_fd,
            ready_fd=-1,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            tls_ca=options.tls_ca,
            plaintext=options.plaintext,
            log_files=options.log_files,
        )
        workers = [
            replace(
                common,
                name=f"worker-{index}",
                index=index,
                rpc_fd=sockets.rpc.fileno(),
                nbd_fd=sockets.nbd.fileno(),
                nbd_tcp_fd=-1 if sockets.nbd_tcp is None else sockets.nbd_tcp.fileno(),
            )
            for index, sockets in enumerate(listening.workers)
        ]
        control = replace(common, rest_fd=listening.rest.fileno())
        # The data path first, because clients wait for it: control gets the cores when the workers serve.
        self._control = Child(control, due_at=time.monotonic() + CONTROL_WAIT_SECONDS)
        self._children = [*(Child(arguments) for arguments in workers), self._control]

    # ---------------------------------------------------------------- the loop

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        while not self._stopping:
            self._start_due()
            self._keep_standby()
            self._report("serving")
            self._wait(self._seconds_to_next_event())
            self._reap()
        notify("STOPPING=1")
        self._report("stopping")
        self._end_standby()
        self._stop([child for child in self._children if child.role == "control"], CONTROL_STOP_SECONDS)
        self._stop([child for child in self._children if child.role == "worker"], WORKER_STOP_SECONDS)
        self._report("stopped")
        return 0

    def _on_signal(self, number: int, _frame: Any) -> None:
        if number != signal.SIGCHLD:
            self._stopping = True

    def _wait(self, seconds: float | None) -> None:
        """Until a signal, a child's readiness, or the time has passed."""
        pipes = [child.ready for child in self._children if child.ready is not None]
        if self._standby is not None and not self._standby.waiting:
            pipes.append(self._standby.ready)
        readable, _, _ = select.select([self._wake_read, *pipes], [], [], seconds)
        if self._wake_read in readable:
            with suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        for child in self._children:
            if child.ready in readable:
                self._note_ready(child)
        if self._standby is not None and self._standby.ready in readable:
            self._standby.note_ready()

    def _seconds_to_next_event(self) -> float | None:
        now = time.monotonic()
        due = [child.due_at for child in self._children if child.due_at is not None]
        if any(child.restarts.crashing(now) for child in self._children):
            due.append(now + CALM_CHECK_SECONDS)
        if self._standby_due_at is not None:
            due.append(self._standby_due_at)
        return max(0.0, min(due) - now) if due else None

    # ---------------------------------------------------------------- children

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.due_at is not None and child.due_at <= now:
                self._start(child)

    def _start(self, child: Child) -> None:
        if child.role == "worker" and self._take_standby(child):
            return
        child.ready, ready_write = os.pipe()
        arguments = replace(child.arguments, ready_fd=ready_write)
        try:
            child.process = subprocess.Popen(
                [*self._entry, child.role, arguments.to_json()],
                stdin=subprocess.DEVNULL,
                pass_fds=arguments.descriptors,
                process_group=0,  # Ctrl-C in a terminal is for the supervisor, which stops them in order
            )
        except OSError as error:  # no memory, too many processes: it may pass
            os.close(child.ready)
            child.ready = None
            child.due_at = time.monotonic() + child.restarts.died(time.monotonic(), None)
            _log.error("%s cannot be started: %s", child.arguments.name, error)
            return
        finally:
            os.close(ready_write)
        child.started_at, child.ready_at, child.due_at = time.monotonic(), None, None

    def _take_standby(self, child: Child) -> bool:
        """Let the worker in waiting take this one's place; False if there is none."""
        standby = self._standby
        if standby is None or not standby.waiting or not standby.become(child.arguments):
            return False
        self._standby = None
        child.process, child.ready = standby.process, standby.ready
        child.started_at, child.ready_at, child.due_at = time.monotonic(), None, None
        return True

    def _keep_standby(self) -> None:
        """Have a worker in waiting, once everything has served for a moment."""
        now = time.monotonic()
        if self._standby is not None and self._standby.process.poll() is not None:
            self._end_standby()
        if self._standby is not None or any(child.state != "serving" for child in self._children):
            self._standby_due_at = None
        elif self._standby_due_at is None:
            self._standby_due_at = now + STANDBY_DELAY_SECONDS
        elif self._standby_due_at <= now:
            self._standby_due_at = None
            sockets = [number for child in self._children for number in child.sockets]
            try:
                self._standby = Standby.start(self._entry, self._common, sockets)
            except OSError as error:  # no memory, too many processes: it may pass
                _log.error("no worker can be kept in waiting: %s", error)

    def _end_standby(self) -> None:
        if self._standby is not None:
            self._standby.end()
            self._standby = None

    def _note_ready(self, child: Child) -> None:
        assert child.ready is not None
        serves = os.read(child.ready, 1) == b"1"
        os.close(child.ready)
        child.ready = None
        if not serves:
            return  # it died; its end is noted by _reap
        child.ready_at = time.monotonic()
        _log.info("%s serves, %.2f s after its start", child.arguments.name, child.start_seconds)
        waited_for = [other for other in self._children if other.state != "serving"]
        if waited_for == [self._control] and self._control.started_at is None:
            self._control.due_at = child.ready_at
        if not waited_for and not self._announced:
            self._announced = True
            notify("READY=1")

    def _reap(self) -> None:
        """Note what died, and when it shall be started again."""
        for child in self._children:
            if child.process is None or child.process.poll() is None:
                continue
            now = time.monotonic()
            child.last_exit = _describe(child.process.returncode)
            delay = child.restarts.died(now, child.ready_at)
            self._forget_process(child)
            child.due_at = now + delay
            _log.error(
                "%s %s; it is started again %s",
                child.arguments.name,
                child.last_exit,
                f"in {delay:.1f} s" if delay else "at once",
            )

    def _forget_process(self, child: Child) -> None:
        if child.ready is not None:
            os.close(child.ready)
        child.process = child.ready = child.ready_at = None

    def _stop(self, children: list[Child], seconds_max: float) -> None:
        """End them: politely, and after `seconds_max` at once."""
        running = [child.process for child in children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + seconds_max
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("process %d did not end within %.0f s and is killed", process.pid, seconds_max)
                process.kill()
                process.wait()
        for child in children:
            self._forget_process(child)

    # ---------------------------------------------------------------- what others see

    def _report(self, state: str) -> None:
        now = time.monotonic()
        children = {child.arguments.name: _seen(child, now) for child in self._children}
        standby_pid = self._standby.process.pid if self._standby is not None and self._standby.waiting else None
        report = SupervisorReport(os.getpid(), state, children, standby_pid)
        if report == self._reported:
            return
        self._reported = report
        try:
            report.write(self._site.supervisor_file)
        except OSError as error:  # a full disk must not end what keeps the data path alive
            _log.error("%s cannot be written: %s", self._site.supervisor_file, error)


def _seen(child: Child, now: float) -> ChildReport:
    return ChildReport(
        pid=child.process.pid if child.process else None,
        state=child.state,
        restarts=child.restarts.count,
        crashing=child.restarts.crashing(now),
        last_exit=child.last_exit,
        start_seconds=child.start_seconds,
    )


def _describe(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _allow_open_files() -> None:
    """For the children too: a group takes some four files and sockets, and the usual soft limit of 1,024 is for programs that
    call select(2) on theirs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def supervise(options: ServeOptions, entry: Sequence[str] = ENTRY) -> int:
    """Serve a site; returns when it was told to stop. Errors of the one tree if it cannot be begun."""
    data = Path(options.data)
    _allow_open_files()
    os.umask(0o077)  # for the children too: catalogue, spools and indexes are nobody else's
    locks = SiteLocks.take(data)
    try:
        site = Site.open(data, name=options.name, run=Path(options.run_dir) if options.run_dir else None)
        log_to("supervisor", site.log if options.log_files else None)
        with listen(site, options) as listening:
            return Supervisor(site, locks, listening, options, entry).run()
    finally:
        locks.release()


def main(arguments: Sequence[str], entry: Sequence[str] = ENTRY) -> int:
    """`python -m dpac_engine.control.supervisor OPTIONS`, with ServeOptions as JSON."""
    options = ServeOptions.from_json(arguments[0])
    try:
        return supervise(options, entry)
    except DpacError as error:
        # Detached, nobody reads it but `dpac serve --detach`, which raises it again.
        text = json.dumps(error.to_wire()) if options.log_files else f"dpac serve: {error.message}"
        sys.stderr.write(f"{text}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
