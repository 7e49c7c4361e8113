"""The processes of `dpac serve`: started, killed at any moment, restarted, stopped. Groups are plain files here."""

from __future__ import annotations

import http.client
import json
import os
import random
import resource
import signal
import ssl
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from dpac_api.contexts import Context, read_contexts, write_context
from dpac_api.errors import Conflict, DpacError, Invalid
from dpac_engine.control import serve
from dpac_engine.control.site import Site, SiteLocks, supervisor_pid
from tests.nbd.certificates import Authority
from tests.nbd.client import ACK, Client, go, option
from tests.nbd.serving import until
from tests.processes.backend import Backend, Load, assignment, is_alive, put_assignment

pytestmark = pytest.mark.e2e


def control_pid(url: str) -> int:
    """Who answers at the endpoint; raises if nobody does."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request("GET", "/healthz")
        return int(json.loads(connection.getresponse().read())["pid"])
    finally:
        connection.close()


def test_detached_start_serves_and_stop_ends_everything(tmp_path: Path) -> None:
    """`serve --detach` returns when REST and exports answer; `stop` leaves no process and keeps the site."""
    with Backend(tmp_path / "data", workers=2) as backend:
        put_assignment(tmp_path / "data" / "groups", assignment("shop", worker=1))
        endpoint = backend.start()
        assert control_pid(endpoint.url) == backend.pids()["control"]
        assert backend.serves("shop/disk", worker=1)
        pids = backend.pids()
        assert set(pids) == {"supervisor", "control", "worker-0", "worker-1"}
        assert serve.stop(backend.data)
        assert not any(is_alive(pid) for pid in pids.values())
        assert not serve.stop(backend.data)
        again = backend.start()
        assert again.site_uid == endpoint.site_uid


def test_every_process_may_open_as_many_files_as_the_host_lets_it(tmp_path: Path) -> None:
    """The soft limit of whoever starts it, often 1,024, is no limit to the number of groups."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        with Backend(tmp_path / "data") as backend:
            backend.start()
            for pid in backend.pids().values():
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_detached_start_of_a_running_site_says_so(tmp_path: Path) -> None:
    """A second `serve --detach` starts nothing and says where the site is."""
    with Backend(tmp_path / "data") as backend:
        endpoint = backend.start()
        pids = backend.pids()
        backend.start()
        assert backend.pids() == pids
        assert any(f"runs already at {endpoint.url}" in line for line in backend.said)


def test_detached_start_leaves_a_context(tmp_path: Path) -> None:
    """The CLI finds the site without flags afterwards; a context of another site is never overwritten."""
    with Backend(tmp_path / "data") as backend:
        endpoint = backend.start()
        known = read_contexts()
        assert known.current == "local"
        assert known.contexts["local"].endpoint == endpoint.url
        assert known.contexts["local"].site_uid == endpoint.site_uid
        token = Path(str(known.contexts["local"].token_file))
        assert token.read_text().strip()
        assert token.stat().st_mode & 0o777 == 0o600
        other = Context(endpoint="http://10.0.0.1:1", site_uid="a" * 32)
        write_context("local", other)
        assert "was left alone" in serve.note_context(endpoint)
        assert read_contexts().contexts["local"] == other


def test_two_backends_never_share_a_data_folder(tmp_path: Path) -> None:
    """While a backend runs its folder cannot be locked, nor after its supervisor died as long as a child lives."""
    with Backend(tmp_path / "data") as backend:
        backend.start()
        with pytest.raises(Conflict, match=r"serves .* already"):
            SiteLocks.take(backend.data, 0)
        worker = backend.pids()["worker-0"]
        backend.kill("supervisor")
        locks = SiteLocks.take(backend.data)
        assert not is_alive(worker)
        locks.release()


def test_exports_ride_through_a_killed_worker(tmp_path: Path, seed: int) -> None:
    """kill -9 of the worker under load, again and again: connecting always works, no acknowledged write is lost."""
    chance = random.Random(seed)
    with Backend(tmp_path / "data") as backend:
        put_assignment(backend.data / "groups", assignment("shop"))
        backend.start()
        gaps = []
        with Load(backend, "shop/disk") as load:
            for _ in range(5):
                goal = load.writes + chance.randrange(50, 2000)
                until(lambda goal=goal: load.writes >= goal, "the load has written")
                backend.kill("worker-0")
                gaps.append(backend.seconds_until_served("shop/disk"))
            goal = load.writes + 100
            until(lambda: load.writes >= goal, "the load writes again")
        print("seconds without exports:", [round(gap, 2) for gap in gaps])
        assert load.connects > 5
        assert load.lost() == {}
        assert min(gaps) < 5.0, gaps  # each of them is what a busy machine allows


def test_a_worker_in_waiting_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    """It becomes whichever worker died, with that worker's exports only, and is itself replaced, also when it is killed."""
    with Backend(tmp_path / "data", workers=2) as backend:
        put_assignment(backend.data / "groups", assignment("zero", worker=0))
        put_assignment(backend.data / "groups", assignment("one", worker=1))
        backend.start()
        for name, export in (("worker-1", "one/disk"), ("worker-0", "zero/disk")):
            until(lambda: backend.standby_pid() is not None, "a worker waits")
            waiting = backend.standby_pid()
            backend.kill(name)
            until(lambda name=name, waiting=waiting: backend.pids().get(name) == waiting, "it took the place")
            assert backend.serves(export, worker=int(name[-1]))
        until(lambda: backend.standby_pid() is not None, "a worker waits")
        waiting = backend.standby_pid()
        assert waiting is not None
        os.kill(waiting, signal.SIGKILL)
        until(lambda: backend.standby_pid() not in (None, waiting), "another one waits")
        last = backend.standby_pid()
        assert last is not None
        serve.stop(backend.data)
        assert not is_alive(last)


def test_io_does_not_notice_a_killed_control(tmp_path: Path) -> None:
    """kill -9 of control: exports stay open; REST waits for its return and is never refused."""
    with Backend(tmp_path / "data") as backend:
        put_assignment(backend.data / "groups", assignment("shop"))
        endpoint = backend.start()
        with Load(backend, "shop/disk") as load:
            until(lambda: load.writes > 100, "the load has written")
            killed = backend.kill("control")
            began = time.monotonic()
            until(lambda: not is_alive(killed), "control is dead")
            assert control_pid(endpoint.url) != killed
            print(f"REST answered {time.monotonic() - began:.2f} s after the kill")
            goal = load.writes + 100
            until(lambda: load.writes >= goal, "the load goes on")
            assert load.connects == 1


def test_everything_returns_after_any_process_was_killed(tmp_path: Path, seed: int) -> None:
    """kill -9 of any process, or all, at a random moment under load: `dpac serve --detach` brings all back, losing nothing."""
    chance = random.Random(seed)
    with Backend(tmp_path / "data", workers=2) as backend:
        put_assignment(backend.data / "groups", assignment("shop"))
        backend.start()
        gaps = []
        with Load(backend, "shop/disk") as load:
            for victim in chance.sample(["worker-0", "control", "supervisor", "all", "supervisor", "all"], 6):
                goal = load.writes + chance.randrange(50, 1000)
                until(lambda goal=goal: load.writes >= goal, "the load has written")
                pids = backend.pids()
                for name, pid in chance.sample(sorted(pids.items()), len(pids)):
                    if victim in ("all", name):
                        with suppress(ProcessLookupError):  # the kernel was faster: its supervisor is dead
                            os.kill(pid, signal.SIGKILL)
                if victim in ("all", "supervisor"):
                    until(lambda pids=pids: not any(is_alive(pid) for pid in pids.values()), "no orphan is left")
                    assert supervisor_pid(backend.data) is None
                    began = time.monotonic()
                    backend.start()
                    print(f"{victim}: `serve --detach` took {time.monotonic() - began:.2f} s")
                gaps.append(backend.seconds_until_served("shop/disk"))
        print("seconds until served again:", [round(gap, 2) for gap in gaps])
        assert load.lost() == {}


def test_children_die_with_their_supervisor(tmp_path: Path) -> None:
    """kill -9 of the supervisor leaves no orphan."""
    with Backend(tmp_path / "data", workers=2) as backend:
        backend.start()
        pids = backend.pids()
        backend.kill("supervisor")
        until(lambda: not any(is_alive(pid) for pid in pids.values()), "the children are gone", 90)


def test_stop_drains_groups(tmp_path: Path) -> None:
    """SIGTERM lets every group drain before its worker ends."""
    with Backend(tmp_path / "data") as backend:
        folder = put_assignment(backend.data / "groups", assignment("shop"))
        backend.start()
        assert not (folder / "stopped").exists()
        serve.stop(backend.data)
        assert (folder / "stopped").exists()


def test_a_group_that_cannot_start_stops_no_other(tmp_path: Path) -> None:
    """A failed group is retried until it starts; the others are served meanwhile."""
    with Backend(tmp_path / "data") as backend:
        bad = put_assignment(backend.data / "groups", assignment("bad"))
        put_assignment(backend.data / "groups", assignment("good"))
        (bad / "fail").touch()
        backend.start()
        assert backend.serves("good/disk")
        assert not backend.serves("bad/disk")
        assert any("bad" not in line["message"] and "fail" in line["message"] for line in backend.log_lines("worker-0"))
        (bad / "fail").unlink()
        until(lambda: backend.serves("bad/disk"), "the group was tried again")


def test_a_worker_that_dies_at_once_is_held_back_and_shown(tmp_path: Path) -> None:
    """A crash loop is slowed down, reported as crashing, and over when its cause is."""
    with Backend(tmp_path / "data", workers=2) as backend:
        put_assignment(backend.data / "groups", assignment("shop", worker=0))
        backend.start()
        (backend.data / "rig").mkdir()
        (backend.data / "rig" / "crash-worker-1").touch()
        backend.kill("worker-1")
        until(lambda: backend.child("worker-1").crashing, "the crashes are seen")
        assert backend.child("worker-1").last_exit == "ended with status 3"
        assert backend.serves("shop/disk")
        assert not backend.child("worker-0").crashing
        (backend.data / "rig" / "crash-worker-1").unlink()
        until(lambda: backend.child("worker-1").state == "serving", "it serves again")


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    """`serve --detach` of a site that cannot run fails with the reason, not with a time-out."""
    with Backend(tmp_path / "data") as backend:
        (backend.data / "rig").mkdir(parents=True)
        with pytest.raises(Invalid, match="holds other things"):
            backend.start()
    with Backend(tmp_path / "other") as backend:
        backend.start()
        serve.stop(backend.data)
        (backend.data / "rig").mkdir()
        (backend.data / "rig" / "crash-control").touch()
        with pytest.raises(DpacError, match="control of the backend dies again and again"):
            backend.start()


def test_a_taken_address_is_an_error_and_a_default_moves_aside(tmp_path: Path) -> None:
    """An address that was asked for must be free; without one, REST finds a free port and remembers it."""
    with Backend(tmp_path / "one", listen=None) as one, Backend(tmp_path / "two", listen=None) as two:
        first, second = one.start(), two.start()
        assert first.url != second.url
        serve.stop(two.data)
        assert two.start().url == second.url
        taken = urlsplit(first.url).netloc
        with (
            Backend(tmp_path / "three", listen=taken) as three,
            pytest.raises(Conflict, match="another process listens"),
        ):
            three.start()


def test_exports_over_tcp_listen_on_one_port_a_worker(tmp_path: Path) -> None:
    """`--nbd-tcp` gives every worker a port of its own, written to endpoint.json."""
    with Backend(tmp_path / "data", workers=2, nbd_tcp="127.0.0.1:0") as backend:
        put_assignment(tmp_path / "data" / "groups", assignment("shop", worker=1))
        endpoint = backend.start()
        host, _, port = str(endpoint.nbd[1]["tcp"]).rpartition(":")
        with Client((host, int(port))) as client:
            assert client.enter("shop/disk").size_bytes == 2**20


def test_tls_covers_rest_and_makes_nbd_clients_prove_themselves(tmp_path: Path) -> None:
    """REST speaks HTTPS with the given certificate; over TCP an NBD client needs one of the authority's."""
    authority = Authority(tmp_path)
    authority.issue("server")
    authority.issue("client")
    files = {"tls_cert": "server-cert.pem", "tls_key": "server-key.pem", "tls_ca": "ca-cert.pem"}
    options = {option: str(tmp_path / file) for option, file in files.items()}
    with Backend(tmp_path / "data", nbd_tcp="127.0.0.1:0", **options) as backend:
        put_assignment(tmp_path / "data" / "groups", assignment("shop"))
        endpoint = backend.start()
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca-cert.pem"))
        assert httpx.get(f"{endpoint.url}/healthz", verify=trust).json()["status"] == "ok"
        address = str(endpoint.nbd[0]["tcp"])

        def enter() -> int:
            host, _, port = address.rpartition(":")
            with Client((host, int(port))) as client:
                client.greet()
                assert client.ask(option(5))[-1].kind == ACK
                client.sock = trust.wrap_socket(client.sock, server_hostname="localhost")
                return client.ask(go("shop/disk"))[-1].kind

        with pytest.raises((ssl.SSLError, ConnectionError)):
            enter()
        trust.load_cert_chain(tmp_path / "client-cert.pem", tmp_path / "client-key.pem")
        assert enter() == ACK


def test_a_deep_data_folder_still_has_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DATA/run is too long a path for a socket, a short private folder serves, the same at every start."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    data = tmp_path / ("deep" * 20) / ("er" * 20)
    with Backend(data) as backend:
        put_assignment(data / "groups", assignment("shop"))
        backend.start()
        run = backend.site.run
        assert run != data / "run"
        assert run.stat().st_mode & 0o777 == 0o700
        assert backend.serves("shop/disk")
        serve.stop(data)
        backend.start()
        assert Site.read(data).run == run
        serve.stop(data)
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
