"""What goes wrong with a bucket on an ordinary week: each has its condition, the application writes on, and all is caught up.

One site, one group, one S3 server behind a proxy; every test breaks something, sees what is said, mends it, and finds
everything that was written meanwhile in a checkpoint at the target, without a restart of anything.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from dpac_api.models import Condition
from tests.e2e.site import MIB, LiveSite, connected, flush, read, until, write
from tests.s3_faults import FaultyProxy, faulty_proxy, lax, lost, refused
from tests.s3_server import S3Server, s3_server

pytestmark = pytest.mark.e2e
SIZE = 8 * MIB
BLOCK = 64 * 1024
BUCKET = "shop-copies"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server, with the bucket."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.make_bucket(BUCKET)
        yield running


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    """The way to it."""
    with faulty_proxy(server.port) as running:
        yield running


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, server: S3Server, proxy: FaultyProxy) -> Iterator[LiveSite]:
    """One site for all of these tests, with a protected group."""
    with LiveSite(tmp_path_factory.mktemp("faults")) as site:
        site.start()
        options = ["--bucket", BUCKET, "--endpoint", proxy.endpoint, "--credentials", f"file:{server.keys_file}"]
        site.dpac("target", "add", "copies", *options)
        site.protect_volume("shop", SIZE)
        yield site


@pytest.fixture
def shop(started: LiveSite, proxy: FaultyProxy, request: pytest.FixtureRequest, seed: int) -> Iterator[Shop]:
    """The group, healthy before and after."""
    shop = Shop(started, random.Random(f"{seed} {request.node.name}"))
    until(lambda: not shop.target_conditions() and shop.status().protected, "the group is protected again")
    yield shop
    proxy.fault = None
    started.print_logs()


class Shop:
    """A group whose application writes whatever happens to its target."""

    def __init__(self, site: LiveSite, chance: random.Random) -> None:
        self.site = site
        self._chance = chance

    def status(self):  # type: ignore[no-untyped-def]
        """The group's status."""
        return self.site.rest.group_status("shop")

    def target_conditions(self) -> list[Condition]:
        """What is said of the target."""
        return [condition for condition in self.status().conditions if condition.subject == "leg/copies"]

    def writes(self) -> tuple[int, bytes]:
        """The application writes and flushes, and gets no error; returns what it wrote and where."""
        offset, data = self._chance.randrange(SIZE // BLOCK) * BLOCK, self._chance.randbytes(BLOCK)
        with connected(self.site.uri("shop/disk")) as client:
            write(client, offset, data)
            flush(client)
        return offset, data

    def is_told(self, kind: str, says: str) -> None:
        """Wait for the one condition about the target, and see that `dpac status` has it, with its next step."""

        def told() -> bool:
            return [condition.type for condition in self.target_conditions()] == [kind]

        until(told, f"the condition is {kind}, not {self.target_conditions()}")
        (condition,) = self.target_conditions()
        assert says in condition.message
        assert condition.severity == "error"
        assert kind in self.site.dpac("status", "shop").stdout

    def has_caught_up(self, *written: tuple[int, bytes]) -> None:
        """By itself: the condition goes, and a checkpoint at the target holds what was written meanwhile."""
        until(lambda: not self.target_conditions(), "the condition is gone")
        until(lambda: self.status().protected, "the group is protected again")
        tag = f"t{self._chance.getrandbits(32):08x}"
        self.site.dpac("checkpoint", "shop", "--tag", tag)
        with (
            self.site.mounted("shop", f"tag:{tag}", "disk") as mount,
            connected(mount.members["disk"]) as client,
        ):
            for offset, data in written:
                assert read(client, offset, len(data)) == data


def test_a_server_that_is_gone_is_unavailable_and_caught_up_with(shop: Shop, server: S3Server) -> None:
    """Killed, and started again on the same address."""
    server.stop()
    shop.site.dpac("target", "check", "copies", status=10)
    written = shop.writes()
    shop.is_told("TargetUnavailable", "tried again")
    later = shop.writes()
    server.start()
    shop.has_caught_up(written, later)


def test_throttling_is_told_and_passes(shop: Shop, proxy: FaultyProxy) -> None:
    """For longer than the retries within a call ride out."""
    proxy.fault = refused(503, "SlowDown")
    written = shop.writes()
    shop.is_told("TargetUnavailable", "the server throttles (HTTP 503, SlowDown)")
    proxy.fault = None
    shop.has_caught_up(written)


def test_one_failure_in_three_is_never_heard_of(shop: Shop, proxy: FaultyProxy) -> None:
    """The retries within a call ride it out: what is written arrives within its RPO, without any condition."""
    count = [0]

    def every_third(asked, go_on):  # type: ignore[no-untyped-def]
        count[0] += 1
        return refused(503, "SlowDown")(asked, go_on) if count[0] % 3 == 0 else go_on()

    proxy.fault = every_third
    for _ in range(3):
        written = shop.writes()
        shop.has_caught_up(written)
    assert count[0] > 9


def test_a_slow_server_lags_visibly_and_is_caught_up_with(shop: Shop, proxy: FaultyProxy) -> None:
    """Every request takes seconds: the RPO is not met and says so, writes go on at their own speed."""

    def slowly(asked, go_on):  # type: ignore[no-untyped-def]
        proxy.stalled.wait(2.0)  # never set here: a pause of the server's
        return go_on()

    proxy.fault = slowly
    written = shop.writes()
    until(lambda: shop.status().sla_state == "RpoNotMet", "the RPO is said not to be met")
    assert shop.status().data_state in ("Backlog", "Continuous")
    later = shop.writes()
    proxy.fault = None
    shop.has_caught_up(written, later)


def test_lost_answers_commit_nothing_twice(shop: Shop, proxy: FaultyProxy) -> None:
    """The server does as asked and its answers are lost: a manifest's create is found to be our own, and nothing is damaged."""

    def puts_lost(asked, go_on):  # type: ignore[no-untyped-def]
        return lost(asked, go_on) if asked.method == "PUT" and "/m/" in asked.path and count.pop() else go_on()

    count = [False, True] * 3 + [True]
    proxy.fault = lambda asked, go_on: puts_lost(asked, go_on) if count else go_on()
    written = shop.writes()
    until(lambda: len(count) < 5, "answers were lost")
    shop.has_caught_up(written)
    shop.site.dpac("verify", "shop")


def test_wrong_credentials_are_denied_and_corrected_without_a_restart(shop: Shop, server: S3Server) -> None:
    """The file is read again at each retry: rotating keys is writing the file."""
    server.write_keys(server.access_key, "not-the-secret")
    try:
        reopened(shop)
        written = shop.writes()
        shop.is_told("TargetDenied", "Correct what `credentials` refers to")
        assert "not-the-secret" not in shop.site.dpac("status", "shop", "--json").stdout
        server.keys_file.chmod(0o644)
        until(lambda: "chmod 600" in shop.target_conditions()[0].message, "the file's mode is told")
    finally:
        server.write_keys(server.access_key, server.secret_key)
    shop.has_caught_up(written)


def test_expired_credentials_are_told_as_such(shop: Shop, proxy: FaultyProxy) -> None:
    """As a session token's end is answered."""
    proxy.fault = refused(400, "ExpiredToken")
    written = shop.writes()
    shop.is_told("TargetDenied", "expired")
    proxy.fault = None
    shop.has_caught_up(written)


def test_a_missing_bucket_is_told_and_not_taken_for_an_empty_one(shop: Shop, server: S3Server) -> None:
    """No seed begins anew, no repository is made, and nothing is thought lost."""
    server.take_bucket_away(BUCKET)
    written = shop.writes()
    shop.is_told("TargetMissing", "Create it")
    assert shop.site.dpac("mount", "shop", "--at", "latest", status=None).returncode != 0
    server.bring_bucket_back(BUCKET)
    shop.has_caught_up(written)
    assert shop.status().legs["copies"].data_state == "Continuous"


def test_a_server_that_stops_refusing_second_creates_gets_nothing_more(shop: Shop, proxy: FaultyProxy) -> None:
    """An update broke its conditional writes: the leg says so once it opens the target, and the check too."""
    proxy.fault = lax
    reopened(shop)
    written = shop.writes()
    shop.is_told("TargetUnfit", "stale primary")
    assert "stale primary" in shop.site.dpac_json("target", "check", "copies", status=10)["checks"]["create-only"]
    proxy.fault = None
    shop.has_caught_up(written)


def reopened(shop: Shop) -> None:
    """The leg opens its target anew: here by a declaration that reaches it in another way."""
    spec = shop.site.rest.target("copies").spec
    shop.site.rest.put_target("copies", spec.model_copy(update={"offsite": not spec.offsite}))
