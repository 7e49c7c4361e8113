"""What every test gets: its own dpac context, a printed seed, and a place in the right queue."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tools import pulumi_environment

settings.register_profile("dpac", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("dpac")

_ONE_AFTER_ANOTHER = ("pulumi", "e2e", "soak")
"""Marks of tests that start real processes: under xdist those of one file share a worker, and so never more than two
files compete for time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests of real processes first: they are the longest queue. `--dist loadgroup` keeps them in it."""
    queued = [item for item in items if any(item.get_closest_marker(mark) for mark in _ONE_AFTER_ANOTHER)]
    for item in queued:
        item.add_marker(pytest.mark.xdist_group(item.path.name))
    chosen = set(queued)
    items[:] = queued + [item for item in items if item not in chosen]


@pytest.fixture(autouse=True)
def _own_context(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees, or writes, the context file and the endpoint of the person who runs it."""
    for name in [name for name in os.environ if name.startswith("DPAC_")]:
        if name not in ("DPAC_TOOLS_DIR", "DPAC_TEST_SEED"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DPAC_CONFIG_DIR", str(tmp_path_factory.mktemp("dpac-config")))


@pytest.fixture(autouse=True)
def _own_event_loop() -> Iterator[None]:
    """Pulumi's mocks need a current loop, and a test that ended with `asyncio.run` leaves none."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def seed() -> int:
    """The seed of this test's random choices; a failure shows it, DPAC_TEST_SEED=N repeats it."""
    chosen = int(os.environ.get("DPAC_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"DPAC_TEST_SEED={chosen}")
    return chosen


@pytest.fixture
def pulumi_env(tmp_path: Path) -> dict[str, str]:
    """Variables to run Pulumi with a home, stacks and passphrase of its own under `tmp_path/pulumi`."""
    return pulumi_environment(tmp_path / "pulumi")
