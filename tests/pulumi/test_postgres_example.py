"""examples/postgres, as its README runs it: any checkpoint that was taken under load recovers a whole database.

Data and WAL lie on two volumes of one group. While transfers run, a client outside of the system writes down every
COMMIT it was told of, with its time; checkpoints are taken at random moments. Each is then mounted, and must replay both
file systems, start, pass PostgreSQL's own check of tables and indexes, have its money, and be of exactly its moment.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dpac_api.models import Mount
from dpac_engine.control.site import Site
from dpac_engine.control.supervisor_report import SupervisorReport
from examples.postgres.receipts import LISTED, parse_listing, read_log
from examples.postgres.server import Server
from setup import checkout
from tests.e2e.file_system import require_file_systems
from tests.e2e.site import until
from tests.pulumi.conftest import Backend
from tests.stack import Stack
from tests.tools import pulumi_environment, require_tool

pytestmark = [pytest.mark.pulumi, pytest.mark.e2e]

EXAMPLE = checkout.ROOT / "examples" / "postgres"
MARKS = [f"mark-{number}" for number in range(10)]
EARLY, SETTLED = MARKS[2], MARKS[3]
"""Before SETTLED is taken, PostgreSQL has written all its pages and dropped the WAL that EARLY needs."""


class Bank:
    """The example at work, and copies of it."""

    def __init__(self, folder: Path, backend: Backend, uris: dict[str, str]) -> None:
        self.folder = folder
        self.uris = uris
        self.backend = backend
        self.log = folder / "receipts.log"
        self.live = folder / "live"

    def run(self, *arguments: str | Path, status: int | None = 0) -> str:
        """What a command of the example prints; its exit status must be as said (None: any)."""
        command = [sys.executable, EXAMPLE / "bank.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        said = f"bank.py {arguments[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        print(said)
        assert "Traceback" not in said, said
        assert status is None or done.returncode == status, said
        return said

    def prepare(self) -> None:
        """Attach and start what the program declared."""
        self.run("prepare", "--folder", self.live, "--data", self.uris["data"], "--wal", self.uris["wal"])

    @property
    def server(self) -> Server:
        """The live server."""
        return Server(self.live / "data" / "root", self.live / "wal" / "root", self.live / "run", "postgres")

    def receipts(self) -> int:
        """How many transactions have been acknowledged so far."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def take_marks(self, tags: list[str], chance: random.Random) -> None:
        """A checkpoint under each tag, some transactions apart."""
        for tag in tags:
            enough = self.receipts() + chance.randrange(20, 120)
            until(lambda enough=enough: self.receipts() >= enough, f"{enough} transactions are acknowledged")
            if tag == SETTLED:
                for _ in range(2):
                    self.server.sql("SELECT pg_switch_wal()")
                    self.server.sql("CHECKPOINT")
            self.backend.dpac("checkpoint", "postgres", "--tag", tag)

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """PostgreSQL writes all its pages again and again, so that marks fall into the middle of it."""
        ended = threading.Event()

        def write_pages() -> None:
            while not ended.is_set():
                self.server.sql("CHECKPOINT")

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write_pages)
            try:
                yield
            finally:
                ended.set()
            writing.result()

    @contextmanager
    def loaded(self) -> Iterator[subprocess.Popen[bytes]]:
        """Transfers and the client that notes receipts run; stopped at the end, as Ctrl-C would."""
        command = [sys.executable, EXAMPLE / "bank.py", "load", "--folder", self.live, "--receipts", self.log]
        with subprocess.Popen([*command, "--seconds", "600"]) as load:
            try:
                yield load
            finally:
                load.send_signal(signal.SIGTERM)

    @contextmanager
    def mounted(self, tag: str) -> Iterator[Mount]:
        """A tagged checkpoint, mounted by the command line."""
        mount = Mount.model_validate_json(self.backend.dpac("mount", "postgres", "--at", f"tag:{tag}", "--json"))
        try:
            yield mount
        finally:
            with self.backend.client() as client:
                client.unmount(mount.id)

    def recover(self, data: str, wal: str, *, status: int) -> str:
        """What `recover` says of the data of one checkpoint with the WAL of one, as of the later of them."""
        copy, file = self.folder / "copy", self.folder / "mount.json"
        with ExitStack() as stack:
            mounts = {tag: stack.enter_context(self.mounted(tag)) for tag in sorted({data, wal})}
            stack.callback(self.run, "stop", "--folder", copy)
            latest = max(mounts.values(), key=lambda mount: mount.checkpoint_time)
            members = {"data": mounts[data].members["data"], "wal": mounts[wal].members["wal"]}
            file.write_text(json.dumps({"members": members, "checkpoint_time": latest.checkpoint_time.isoformat()}))
            return self.run("recover", "--folder", copy, "--receipts", self.log, "--mount", file, status=status)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the server's user may pass through, and short enough for a socket."""
    require_file_systems()
    for tool in ("initdb", "pgbench", "pg_amcheck"):
        require_tool(tool)
    made = Path(tempfile.mkdtemp(prefix="dpac-postgres-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def stack(folder: Path, backend: Backend) -> Iterator[Stack]:
    """The example's own program, brought up."""
    project = folder / "program"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__"))
    (folder / "volumes").mkdir()
    made = Stack(project, {**pulumi_environment(folder / "pulumi"), **backend.variables}, project=None)
    made.configure("volumes", str(folder / "volumes"))
    made.configure("copies", str(folder / "copies"))
    made.configure("data_size", "256MiB")
    made.configure("wal_size", "128MiB")
    made.up()
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def bank(folder: Path, stack: Stack, backend: Backend) -> Iterator[Bank]:
    """The bank after it was loaded, with every checkpoint of MARKS at the target, still serving."""
    bank = Bank(folder, backend, {name: output.value for name, output in stack.stack.outputs().items()})
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    print(f"seed of the moments at which checkpoints are taken: {seed}")
    with ExitStack() as ending:
        ending.callback(bank.run, "stop", "--folder", bank.live)
        bank.prepare()
        with bank.loaded() as load:
            with bank.checkpointing():
                bank.take_marks(MARKS[:5], chance)
            bank.take_marks(MARKS[5:], chance)
            after = bank.receipts() + 50
            until(lambda: bank.receipts() >= after, "transactions go on after the last checkpoint")
        assert load.returncode == 0
        with backend.client() as client:
            until(lambda: all(client.checkpoints("postgres", tag=tag).items for tag in MARKS), "all marks are listed")
        yield bank


def test_nothing_that_makes_a_commit_durable_is_off(bank: Bank) -> None:
    """Else there would be nothing to lose."""
    for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
        assert bank.server.sql(f"SHOW {setting}") == "on"


@pytest.mark.parametrize("tag", MARKS)
def test_a_checkpoint_under_load_recovers_to_exactly_its_moment(bank: Bank, tag: str) -> None:
    """Both file systems replay, PostgreSQL starts and recovers, all is whole, all that was acknowledged is there."""
    said = bank.recover(tag, tag, status=0)
    assert said.count("journal replayed, file system whole") == 2
    assert "redo starts at" in said
    assert "every row indexed" in said
    assert "whole, nothing missing" in said
    with bank.backend.client() as client:
        moment = client.checkpoint("postgres", f"tag:{tag}").time
    logged = list(read_log(bank.log))
    assert [receipt for receipt in logged if receipt.acknowledged <= moment], "nothing could have been lost"
    assert [receipt for receipt in logged if receipt.sent > moment], "nothing could have come too early"


@pytest.mark.parametrize(
    ("data", "wal"),
    [(EARLY, SETTLED), (SETTLED, EARLY), (MARKS[7], MARKS[6])],
    ids=["data older than WAL", "WAL older than data", "WAL a moment older"],
)
def test_volumes_of_two_moments_are_found_out(bank: Bank, data: str, wal: str) -> None:
    """What two groups would give instead of one: the server does not start, or has lost what it acknowledged."""
    said = bank.recover(data, wal, status=1)
    assert "nothing missing" not in said
    assert any(sign in said for sign in ("are missing", "PANIC:", "FATAL:", "pg_amcheck ended")), said


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(20))
def test_many_checkpoints_under_load_recover_to_exactly_their_moments(bank: Bank, seed: int, number: int) -> None:
    """The oracle of a database whose data and WAL lie on two volumes: ten more moments, of which others take each seed."""
    chance = random.Random(seed + number)
    tags = [f"seed-{number}-{moment}" for moment in range(10)]
    with bank.loaded() as load:
        with bank.checkpointing():
            bank.take_marks(tags[:5], chance)
        bank.take_marks(tags[5:], chance)
        after = bank.receipts() + 50
        until(lambda: bank.receipts() >= after, "transactions go on after the last checkpoint")
    assert load.returncode == 0
    with bank.backend.client() as client:
        until(lambda: all(client.checkpoints("postgres", tag=tag).items for tag in tags), "all marks are listed")
    for tag in tags:
        said = bank.recover(tag, tag, status=0)
        assert "every row indexed" in said
        assert "whole, nothing missing" in said


def test_recoveries_leave_the_live_bank_alone(bank: Bank, stack: Stack) -> None:
    """It has all its receipts, and the program declares what is there."""
    assert int(bank.server.sql("SELECT count(*) FROM receipts")) >= bank.receipts()
    bank.server.amcheck()
    stack.up(expect_no_changes=True)


def test_a_killed_worker_loses_nothing_that_was_acknowledged(bank: Bank) -> None:
    """nbdfuse dies with its connection, and PostgreSQL with its disks; attached again, the bank has every receipt."""
    before = bank.receipts()
    with bank.loaded() as load:
        until(lambda: bank.receipts() > before + 50, "transactions are acknowledged")
        report = SupervisorReport.read(Site.read(bank.backend.folder / "site").supervisor_file)
        assert report is not None
        os.kill(report.children["worker-0"].pid, signal.SIGKILL)
        until(lambda: load.poll() is not None, "the load notices")
    assert load.returncode == 2
    bank.run("stop", "--folder", bank.live)
    bank.prepare()
    expected = {receipt.number for receipt in read_log(bank.log)}
    assert expected <= set(parse_listing(bank.server.sql(LISTED).splitlines()))
    bank.server.amcheck()
