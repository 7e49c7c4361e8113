"""The supervisor's decisions, options and reports; its processes are in tests/e2e/test_processes.py."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpac_api.errors import Conflict, Invalid
from dpac_engine.control.child_process import ChildArguments
from dpac_engine.control.serve_options import ServeOptions, default_workers
from dpac_engine.control.sockets import Address, bound_address, listen_tcp, listen_unix
from dpac_engine.control.supervisor_report import ChildReport, SupervisorReport
from dpac_engine.control.systemd import notify
from dpac_engine.core.restarts import DELAY_SECONDS, SERVED_DELAY_SECONDS_MAX, Restarts


def test_the_first_restart_is_immediate() -> None:
    """A process that served and died is started again at once, however often that happens."""
    restarts = Restarts()
    for moment in range(0, 100, 10):
        assert restarts.died(moment, ready_at=moment - 5.0) == 0.0
    assert restarts.count == 10


def test_a_process_that_never_serves_is_held_back_more_and_more() -> None:
    """Deaths at the start wait longer each time, up to five seconds."""
    restarts = Restarts()
    assert [restarts.died(moment, ready_at=None) for moment in range(10)] == [*DELAY_SECONDS, 5.0, 5.0]


def test_a_process_that_served_at_all_is_back_within_a_second() -> None:
    """Whoever kills a worker again and again right after its start does not keep its clients waiting long."""
    restarts = Restarts()
    delays = [restarts.died(moment, ready_at=moment - 0.1) for moment in range(10)]
    assert max(delays) == SERVED_DELAY_SECONDS_MAX < 0.5


def test_serving_for_a_while_forgives_early_deaths() -> None:
    """After it served, a process starts with a clean slate."""
    restarts = Restarts()
    for moment in range(5):
        restarts.died(moment, ready_at=None)
    assert restarts.died(100, ready_at=97) == 0.0
    assert restarts.died(101, ready_at=None) == 0.0


def test_crashing_is_said_of_three_deaths_within_a_minute() -> None:
    """Two deaths are no alarm, three within a minute are, and a minute of quiet ends it."""
    restarts = Restarts()
    restarts.died(0, 0)
    restarts.died(10, 5)
    assert not restarts.crashing(10)
    restarts.died(20, 15)
    assert restarts.crashing(20)
    assert restarts.crashing(59)
    assert not restarts.crashing(61)


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=50))
def test_no_history_makes_a_wait_of_more_than_five_seconds(history: list[tuple[float, bool]]) -> None:
    """Whatever happened, a process is tried again within five seconds."""
    restarts, now = Restarts(), 0.0
    for seconds, served in history:
        now += seconds
        assert 0 <= restarts.died(now, now - seconds if served else None) <= 5


def test_the_supervisor_is_light() -> None:
    """Starting it loads the standard library and a few files of ours only, so that it is there at once."""
    code = "import sys, dpac_engine.control.supervisor; print(*{name.partition('.')[0] for name in sys.modules})"
    found = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    ours = {"dpac_api", "dpac_engine", "sitecustomize", "usercustomize", "__main__"}
    foreign = {name for name in found - sys.stdlib_module_names - ours if not name.startswith(("_", "distutils"))}
    assert not foreign
    assert not found & {"asyncio", "pydantic", "numpy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"workers": 1000}, "--workers 1000"),
        ({"listen": "8700"}, "--listen '8700'"),
        ({"listen": "example.org:1"}, "--listen"),
        ({"nbd_tcp": "127.0.0.1:99999"}, "--nbd-tcp"),
        ({"listen": "0.0.0.0:8700"}, "without TLS"),
        ({"nbd_tcp": "[::]:10809"}, "prove who they are"),
        ({"nbd_tcp": "0.0.0.0:1", "tls_cert": __file__, "tls_key": __file__}, "prove who they are"),
        ({"tls_ca": __file__}, "--tls-cert and --tls-key too"),
        ({"tls_cert": "/cert.pem"}, "belong together"),
        ({"tls_cert": "/none.pem", "tls_key": "/none.key"}, "cannot be read"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    """Every wrong option is refused before anything starts, by its name."""
    with pytest.raises(Invalid, match=message.replace("[", r"\[")):
        ServeOptions(data=str(tmp_path), **options).checked()  # type: ignore[arg-type]


def test_options_become_absolute_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the supervisor gets does not depend on where it was started."""
    monkeypatch.chdir(tmp_path)
    options = ServeOptions(data="site", run_dir="r", listen="0.0.0.0:1", plaintext=True).checked()
    assert (options.data, options.run_dir) == (str(tmp_path / "site"), str(tmp_path / "r"))
    assert options.workers == default_workers() >= 1
    assert ServeOptions.from_json(options.to_json()) == options


def test_addresses_read_as_they_are_written() -> None:
    """IPv4, IPv6 and localhost; each knows whether other hosts reach it."""
    assert str(Address.parse("[::1]:80", "x")) == "[::1]:80"
    assert Address.parse("localhost:80", "x") == Address("127.0.0.1", 80)
    assert Address.parse("127.9.9.9:0", "x").stays_on_this_host
    assert not Address.parse("192.0.2.1:0", "x").stays_on_this_host
    assert Address.parse("0.0.0.0:1", "x").everywhere


def test_a_taken_port_is_a_conflict() -> None:
    """A second listener is refused with the option's name."""
    with listen_tcp(Address("127.0.0.1", 0), "--listen") as first:
        taken = bound_address(first)
        with pytest.raises(Conflict, match=f"--listen {taken}"):
            listen_tcp(taken, "--listen")


def test_an_address_of_another_host_is_invalid() -> None:
    """Binding an address that this host does not have says so."""
    with pytest.raises(Invalid, match="cannot be listened on"):
        listen_tcp(Address("192.0.2.1", 0), "--listen")


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed backend left behind does not hinder the next one; nobody else may connect."""
    path = tmp_path / "x.sock"
    listen_unix(path).close()
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """The limit of sockaddr_un is told before bind would."""
    with pytest.raises(Invalid, match="too long"):
        listen_unix(tmp_path / ("x" * 108))


def test_reports_are_read_as_written(tmp_path: Path) -> None:
    """A report survives the file; no file, or a damaged one, is no report."""
    path = tmp_path / "supervisor.json"
    child = ChildReport(12, "serving", 3, True, "was ended by SIGKILL", 0.25)
    report = SupervisorReport(
        11, "serving", {"worker-0": child, "control": ChildReport(None, "waiting", 0, False, "", None)}, 13
    )
    assert SupervisorReport.read(path) is None
    report.write(path)
    assert SupervisorReport.read(path) == report
    assert list(report.crashing()) == ["worker-0"]
    assert not report.all_serve
    path.write_text("{")
    assert SupervisorReport.read(path) is None


def test_systemd_is_told_where_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram goes to NOTIFY_SOCKET; without one nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_a_child_without_its_supervisor_ends_at_once(tmp_path: Path) -> None:
    """A child that was orphaned before it could be tied to its supervisor does not stay behind."""
    arguments = ChildArguments("worker-0", str(tmp_path), 1, 1, tree_fd=-1, ready_fd=-1).to_json()
    code = "import sys; from dpac_engine.control.child_process import *; begin(ChildArguments.from_json(sys.argv[1])); input()"
    ended = subprocess.run([sys.executable, "-c", code, arguments], stdin=subprocess.PIPE, check=False, timeout=60)
    assert ended.returncode == 1
