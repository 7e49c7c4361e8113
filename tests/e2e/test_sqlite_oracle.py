"""The oracle of directories: every checkpoint of a SQLite application is the moment that its cut says it is.

Two databases that are written all the time, one with a write-ahead log and one with a rollback journal, lie in a directory
under the blueprint `sqlite`. The record is kept outside the system (`sqlite_oracle.py`). An `observed` cut promises that all
that was committed by its `as_of` is there; a `barrier` (an application-consistent checkpoint) all that was committed when it was
asked for; both, that nothing is there that was issued after the checkpoint.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest

from dpac_api.errors import Temporary
from dpac_api.models import Cut
from dpac_engine.core.image import TreeImage
from dpac_engine.io.members.tree_restore import restore_tree
from tests.e2e.site import LiveSite
from tests.e2e.sqlite_oracle import Application, newest_in
from tests.e2e.test_oracle import checkpoints_of, nanoseconds, opened, worker_dies

MODES = {"log.db": "WAL", "rollback.db": "DELETE"}
APP_EVERY = 4
"""Every so many checkpoints one is application-consistent."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site that serves nothing yet."""
    with LiveSite(tmp_path) as site:
        site.start()
        yield site
        site.print_logs()


@contextmanager
def applications(site: LiveSite, seed: int) -> Iterator[dict[str, Application]]:
    """Both at work, in a directory that is protected while they write; a volume beside it for `worker_dies`."""
    folder = site.folder / "shop"
    folder.mkdir()
    with ExitStack() as stack:
        found = {
            name: stack.enter_context(Application(folder / name, mode, seed + number))
            for number, (name, mode) in enumerate(MODES.items())
        }
        for application in found.values():
            application.wait_for(20)
        members = {
            "shop": {"kind": "directory", "path": str(folder), "blueprint": "sqlite"},
            "a": {"kind": "volume", "path": str(site.folder / "a.raw"), "size": "1MiB"},
        }
        site.protect("oracle", members, journal={"history": "12h", "size_max": "16GiB"})
        yield found


def complete_to_ns(cut: Cut, asked_ns: int | None) -> int:
    """Up to when a cut promises to be complete; a barrier that somebody else asked for promises nothing that we could date."""
    if cut.kind == "barrier":
        return asked_ns or 0
    assert cut.kind == "observed"
    assert cut.as_of is not None
    return nanoseconds_of(cut.as_of)


def nanoseconds_of(moment: datetime) -> int:
    """To the microsecond, rounded down."""
    return int(moment.timestamp() * 1e6) * 1000


def take_barrier(site: LiveSite, barriers: dict[str, int]) -> None:
    """Take an application-consistent checkpoint and note when it was asked for."""
    asked_ns = time.time_ns()
    with suppress(Temporary):  # the worker has just begun a new life
        taken = site.rest.take_checkpoint("oracle", app=True)
        if taken.cuts["shop"].kind == "barrier":
            assert taken.consistency == "app"
            barriers[taken.id] = asked_ns


@pytest.mark.parametrize("fault", ["too old", "too new", "none"])
def test_the_judge_finds_what_a_cut_does_not_promise(tmp_path: Path, fault: str) -> None:
    """A copy that lacks what was committed before, or has what was issued after, fails."""
    application = Application(tmp_path / "log.db", "WAL", 1)  # never started
    for number in range(1, 10):
        application.note("issued", number, number * 10_000)
        application.note("committed", number, number * 10_000 + 5000)
    bounds = {"too old": (60_000, 90_000), "too new": (10_000, 38_000), "none": (44_000, 90_000)}[fault]
    if fault == "none":
        application.judge(4, *bounds)
        return
    with pytest.raises(AssertionError):
        application.judge(4, *bounds)


@pytest.mark.e2e
def test_a_mounted_checkpoint_of_a_sqlite_application_is_what_its_cut_says(site: LiveSite, seed: int) -> None:
    """While the applications write, are killed and go on, and the worker dies: whole, chained, of its moment. Every barrier, and
    some of the checkpoints between them."""
    chance = random.Random(seed)
    barriers: dict[str, int] = {}
    judged: set[str] = set()
    scans: set[datetime] = set()
    with applications(site, seed) as writers:
        begin = site.wait_for_checkpoint("oracle").id
        deadline = time.monotonic() + 200
        while len(judged) < 8 or len(scans) < 2 or len(set(barriers) & judged) < 2:
            assert time.monotonic() < deadline, f"{len(judged)} judged, {len(scans)} scans, barriers {barriers}"
            take_barrier(site, barriers)
            found = [checkpoint for checkpoint in checkpoints_of(site, begin) if checkpoint.id not in judged]
            # Not every one: on a slow host more would be taken meanwhile than are judged, and that for ever.
            picked = chance.sample(found, min(2, len(found)))
            for checkpoint in picked + [one for one in found if one.id in barriers and one not in picked]:
                judged.add(checkpoint.id)
                cut = checkpoint.cuts["shop"]
                if cut.as_of is not None:
                    scans.add(cut.as_of)
                bounds = complete_to_ns(cut, barriers.get(checkpoint.id)), nanoseconds(checkpoint)
                with site.mounted("oracle", checkpoint.id, "shop") as mount:
                    root = Path(mount.members["shop"])
                    assert sorted(path.name for path in root.iterdir()) == sorted(MODES)
                    for name, writer in writers.items():
                        copy = shutil.copyfile(root / name, site.folder / name)
                        writer.judge(newest_in(copy), *bounds)
            if chance.random() < 0.3:
                writers[chance.choice(list(MODES))].restart()
            if chance.random() < 0.2:
                worker_dies(site)
    print(f"{len(judged)} checkpoints judged, {len(set(barriers) & judged)} of them barriers, {len(scans)} scans")


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_many_checkpoints_of_a_sqlite_application_are_what_their_cuts_say(
    site: LiveSite, seed: int, number: int
) -> None:
    """The same for every single checkpoint of a quarter of an hour, read from the target."""
    chance = random.Random(seed + number)
    barriers: dict[str, int] = {}
    with applications(site, seed + number) as writers:
        begin = site.wait_for_checkpoint("oracle").id
        while len(checkpoints_of(site, begin)) < 1000:
            writers[chance.choice(list(MODES))].wait_for(chance.randrange(100, 2000))
            what = chance.random()
            if what < 0.2:
                worker_dies(site)
            elif what < 0.4:
                writers[chance.choice(list(MODES))].restart()
            else:
                for _ in range(APP_EVERY):
                    take_barrier(site, barriers)
        wanted = {checkpoint.id: checkpoint for checkpoint in checkpoints_of(site, begin)}
    reader, known = opened(site), dict[object, dict[str, int]]()
    judged = 0
    for mark in reader.marks():
        if (checkpoint := wanted.get(mark.id)) is None:
            continue
        (ordinal,) = (ordinal for ordinal, state in reader.members_at(mark).items() if state.name == "shop")
        newest = newest_of(reader.image(mark).tree(ordinal), site.folder / "restored", known)
        for name, writer in writers.items():
            bounds = complete_to_ns(checkpoint.cuts["shop"], barriers.get(mark.id)), nanoseconds(checkpoint)
            writer.judge(newest[name], *bounds)
        judged += 1
    assert judged == len(wanted) >= 1000
    assert len(set(barriers) & set(wanted)) >= 20
    print(f"{judged} checkpoints judged, {len(known)} different trees among them")


def newest_of(tree: TreeImage, scratch: Path, known: dict[object, dict[str, int]]) -> dict[str, int]:
    """The newest transaction of each database in a tree. What `known` has is not restored again: checkpoints in a row often
    hold the very same entries."""
    assert tree.paths() == sorted([b".", *(name.encode() for name in MODES)])
    place = tuple(tree.place(path) for path in tree.paths())
    if place not in known:
        restore_tree(tree.entries(), tree.read_chunk, scratch, lambda _: None)
        known[place] = {name: newest_in(scratch / name) for name in MODES}
        shutil.rmtree(scratch)
    return known[place]
