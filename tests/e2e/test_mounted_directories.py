"""A directory of a checkpoint is mounted at once, takes changes, keeps them, and needs its target no more once it is copied."""

from __future__ import annotations

import errno
import mmap
import os
import random
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dpac_api.models import DrillReport, Mount
from dpac_engine.io.mounted_tree.mountpoint import detach, is_mounted
from tests.directories.trees import picture
from tests.e2e.site import MIB, LiveSite, until

pytestmark = pytest.mark.e2e
LARGE_BYTES = 3 * MIB + 321


def make_tree(root: Path, chance: random.Random) -> None:
    """Everything a tree can have: large and sparse files, links, odd names, attributes, databases, things that are no files."""
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o711)
    (root / "large.bin").write_bytes(chance.randbytes(LARGE_BYTES))
    with (root / "sparse.bin").open("wb") as sparse:
        sparse.truncate(64 * MIB)
        sparse.seek(32 * MIB + 5)
        sparse.write(b"in the middle")
    for number in range(40):
        (root / "sub" / f"file-{number:03}").write_bytes(chance.randbytes(chance.randrange(0, 9000)))
    os.link(root / "sub" / "file-007", root / "sub" / "deeper" / "also-007")
    os.symlink("../large.bin", root / "sub" / "link")
    os.mkfifo(root / "pipe", 0o640)
    (root / os.fsdecode(b"odd \xff\n name")).write_text("odd")
    (root / "sub-way").write_text("sorts between sub and what is in it")
    os.setxattr(root / "large.bin", "user.colour", b"green")
    (root / "large.bin").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(root / "sub" / "file-003", 1234, 4321)
    for mode in ("WAL", "DELETE"):
        with closing(sqlite3.connect(root / f"{mode}.db")) as database:
            database.execute(f"PRAGMA journal_mode={mode}")
            database.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, body BLOB)")
            database.executemany("INSERT INTO item (body) VALUES (?)", ((chance.randbytes(900),) for _ in range(800)))
            database.commit()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """One site with a protected directory for all of these tests."""
    with LiveSite(tmp_path_factory.mktemp("trees")) as site:
        tree = site.folder / "tree"
        tree.mkdir()
        make_tree(tree, random.Random(7))
        site.start()
        site.protect("files", {"tree": {"kind": "directory", "path": str(tree)}})
        site.dpac_json("checkpoint", "files", "--tag", "base")
        site.wait_for_checkpoint("files", "tag:base")
        yield site


@pytest.fixture
def site(started: LiveSite) -> Iterator[LiveSite]:
    """The site, with its logs in the report of a failure."""
    yield started
    started.print_logs()


@contextmanager
def mounted(site: LiveSite, *, hydrate: bool = False) -> Iterator[tuple[Mount, Path]]:
    """The tree at the checkpoint `base`."""
    mount = site.rest.mount("files", at="tag:base", hydrate=hydrate)
    try:
        assert mount.note == "", mount.note
        yield mount, Path(mount.members["tree"])
    finally:
        site.rest.unmount(mount.id)
        assert not (site.site.mounts / mount.id).exists()


def test_the_mount_shows_the_tree_as_it_was_captured(site: LiveSite) -> None:
    """Names, kinds, modes, owners, times, contents, attributes, links and holes."""
    with mounted(site) as (_, place):
        assert picture(place) == picture(site.folder / "tree")
        assert os.stat(place / "sparse.bin").st_blocks * 512 < MIB


def change(place: Path, chance: random.Random) -> None:
    """Changes of every kind, synced where a program would."""
    with (place / "large.bin").open("r+b") as file:
        for _ in range(20):
            file.seek(chance.randrange(LARGE_BYTES))
            file.write(chance.randbytes(chance.randrange(1, 9000)))
    os.truncate(place / "sub" / "file-000", 3)
    os.truncate(place / "sparse.bin", 32 * MIB + 7)
    os.truncate(place / "sparse.bin", 40 * MIB)
    (place / "sub" / "file-001").unlink()
    (place / "sub" / "file-002").write_text("anew")
    (place / "new").mkdir()
    (place / "new" / "note").write_bytes(b"first line\n")
    with (place / "new" / "note").open("ab") as file:
        file.write(b"second line\n")
        os.fsync(file.fileno())
    (place / "sub").rename(place / "moved")
    (place / "moved" / "deeper" / "also-007").write_text("both names have this")
    (place / "moved" / "file-010").rename(place / "moved" / "file-011")
    os.link(place / "moved" / "file-012", place / "new" / "also-012")
    os.symlink("note", place / "new" / "link")
    (place / "empty").rmdir()
    (place / "sub-way").chmod(0o600)
    os.setxattr(place / "large.bin", "user.colour", b"red")
    os.setxattr(place / "new" / "note", "user.mark", b"1")
    os.utime(place / "pipe", ns=(5, 5))
    os.utime(place / "new" / "note", ns=(7, 7))


def without_times(root: Path) -> dict[bytes, tuple[object, ...]]:
    """`picture`, but for the times of what was changed: two trees are not changed at one moment."""
    return {path: (*seen[:4], *seen[5:]) for path, seen in picture(root).items()}


def trees_pid(site: LiveSite) -> int:
    """The process that serves mounted directories: the worker's child."""
    worker = site.pids()["worker-0"]
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if b"trees" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def seen(place: Path) -> dict[bytes, tuple[object, ...]] | None:
    """The tree's picture; None while nothing is mounted there."""
    try:
        return picture(place) if is_mounted(place) else None
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT, errno.ESTALE):
            raise
        return None


def test_what_is_changed_in_a_mount_is_as_on_any_file_system_and_outlives_every_process(
    site: LiveSite, seed: int, tmp_path: Path
) -> None:
    """The same changes to a copy of the tree make the same tree; kill -9 of the process that serves it, of the worker, and of the
    whole backend, and an orderly restart, leave it as it was; the member itself sees nothing of it."""
    before = picture(site.folder / "tree")
    subprocess.run(["cp", "-a", site.folder / "tree", tmp_path / "copy"], check=True)
    with mounted(site) as (_, place):
        change(place, random.Random(seed))
        change(tmp_path / "copy", random.Random(seed))
        assert without_times(place) == without_times(tmp_path / "copy")
        assert os.stat(place / "new" / "note").st_mtime_ns == 7
        expected = picture(place)
        os.kill(trees_pid(site), 9)
        until(lambda: seen(place) == expected, "it is mounted again as it was")
        site.kill("worker-0")
        until(lambda: seen(place) == expected, "the next worker mounts it again")
        site.kill("supervisor")
        until(lambda: not is_mounted(place), "nothing is left mounted")
        site.start()
        until(lambda: seen(place) == expected, "the next backend mounts it again")
        site.dpac("stop", "--data", str(site.data))
        assert not is_mounted(place)
        site.start()
        until(lambda: seen(place) == expected, "it is there after an orderly restart")
        (place / "later").write_text("still writable")
        assert (place / "later").read_text() == "still writable"
    assert picture(site.folder / "tree") == before


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_sqlite_works_on_a_mount(site: LiveSite, mode: str) -> None:
    """Two connections at once, locks, shared memory and rollbacks; the integrity check passes, also after kill -9 of the server."""
    with mounted(site) as (_, place):
        path = place / f"{mode}.db"
        with closing(sqlite3.connect(path, timeout=60)) as one, closing(sqlite3.connect(path, timeout=60)) as other:
            assert one.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert one.execute("PRAGMA journal_mode").fetchone() == (mode.lower(),)
            for number in range(20):
                writer = (one, other)[number % 2]
                writer.execute("INSERT INTO item (body) VALUES (?)", (os.urandom(2000),))
                if number % 10 == 9:
                    writer.rollback()
                else:
                    writer.commit()
            one.execute("BEGIN IMMEDIATE")
            other.execute("PRAGMA busy_timeout=0")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            one.rollback()
            assert other.execute("SELECT count(*) FROM item").fetchone() == (818,)
            os.kill(trees_pid(site), 9)
        until(lambda: seen(place) is not None, "it is mounted again")
        with closing(sqlite3.connect(path, timeout=60)) as again:
            assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert again.execute("SELECT count(*) FROM item").fetchone() == (818,)


def test_programs_find_a_file_system_in_a_mount(site: LiveSite, seed: int) -> None:
    """Shared mappings, files without a name, names of one file, renames that must not replace, holes and a full listing."""
    chance = random.Random(seed)
    with mounted(site) as (_, place):
        with (place / "large.bin").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[2_000_000:2_000_004] = b"mmap"
            mapped.flush()
            assert os.pread(file.fileno(), 4, 2_000_000) == b"mmap"
        with (place / "sub" / "nameless").open("w+b") as file:
            (place / "sub" / "nameless").unlink()
            file.write(b"x" * 10_000)
            file.truncate(5000)
            assert os.fstat(file.fileno()).st_size == 5000
            assert os.pread(file.fileno(), 9999, 0) == b"x" * 5000
        first, second = place / "sub" / "file-007", place / "sub" / "deeper" / "also-007"
        with second.open("rb") as reading:
            reading.read(1)
            first.write_bytes(b"seen by both")
            assert second.stat().st_size == 12
            assert second.stat().st_ino == first.stat().st_ino
        first.unlink()
        assert second.read_bytes() == b"seen by both"
        assert second.stat().st_nlink == 1
        done = subprocess.run(["mv", "-n", place / "sub-way", place / "large.bin"], check=False, capture_output=True)
        assert (place / "large.bin").stat().st_size == LARGE_BYTES, done
        with pytest.raises(OSError, match="not empty"):
            (place / "sub" / "deeper").rmdir()
        subprocess.run(["fallocate", "--punch-hole", "-o", "4096", "-l", "8192", place / "large.bin"], check=True)
        with (place / "large.bin").open("rb") as file:
            file.seek(4096)
            assert file.read(8192) == bytes(8192)
        listed = sorted(os.listdir(place / "sub"))
        names = [f"made-{number}" for number in chance.sample(range(10_000), 60)]
        for name in names:
            (place / "sub" / name).touch()
        assert sorted(os.listdir(place / "sub")) == sorted([*listed, *names])
        subprocess.run(["rm", "-r", place / "sub"], check=True)
        assert not (place / "sub").exists()
        (place / "sub").mkdir()
        assert os.listdir(place / "sub") == []


def content(path: Path) -> bytes | None:
    """A file's; None while it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def listed(site: LiveSite, mount_id: str) -> Mount:
    """A mount as `dpac mounts` shows it."""
    (found,) = [item for item in site.dpac_json("mounts")["items"] if item["id"] == mount_id]
    return Mount.model_validate(found)


def test_a_directory_that_is_copied_outlives_its_target_and_the_worker(site: LiveSite) -> None:
    """With the target away all of it is read, also after kill -9, and nothing is held there any more. One that is not copied gives
    EIO for what was not read, has its names and what was written, and works again when the target is back."""
    expected, target = picture(site.folder / "tree"), site.folder / "copies"
    with mounted(site, hydrate=True) as (kept, place), mounted(site) as (bare, other):
        (other / "empty" / "written").write_text("here")
        until(lambda: listed(site, kept.id).hydrated_fraction == 1.0, "the directory is copied")
        assert listed(site, bare.id).hydrated_fraction is None
        until(lambda: not (site.site.mounts / kept.id / "held.json").exists(), "nothing is held for it any more")
        assert (site.site.mounts / bare.id / "held.json").exists()
        os.kill(trees_pid(site), 9)  # with what it has in its cache
        until(lambda: content(other / "empty" / "written") == b"here", "it is mounted again")
        until(lambda: content(place / "sub-way"), "the copied one is, too")
        target.rename(target.with_name("away"))
        try:
            assert picture(place) == expected
            with pytest.raises(OSError, match="Input/output error"):
                (other / "large.bin").read_bytes()
            assert (other / "empty" / "written").read_text() == "here"
            site.kill("worker-0")
            until(lambda: seen(place) == expected, "the copied directory is mounted again without its target")
            until(lambda: listed(site, bare.id).problem, "it is said why the other one is not there")
        finally:
            target.with_name("away").rename(target)
        large = (site.folder / "tree" / "large.bin").read_bytes()
        until(lambda: content(other / "large.bin") == large, "the other one is there with its target")
        assert (other / "empty" / "written").read_text() == "here"


def test_twenty_directories_of_different_checkpoints_are_mounted_at_the_same_time(site: LiveSite) -> None:
    """Each shows its own checkpoint and takes its own changes; all are gone after."""
    changing = site.folder / "changing"
    changing.mkdir()
    (changing / "version").write_text("0")
    site.protect("many", {"tree": {"kind": "directory", "path": str(changing)}})
    for number in range(1, 5):
        (changing / "version").write_text(str(number))
        site.mark_directory("many", "tree", f"v{number}")
    wanted = [1 + number % 4 for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        mounts = list(pool.map(lambda number: site.rest.mount("many", at=f"tag:v{number}"), wanted))
        places = [Path(mount.members["tree"]) for mount in mounts]
        list(pool.map(lambda item: (item[1] / "own").write_text(str(item[0])), enumerate(places)))
        read = list(pool.map(lambda place: (place / "version").read_text(), places))
    assert [int(text) for text in read] == wanted
    assert [(place / "own").read_text() for place in places] == [str(number) for number in range(20)]
    lines = Path(f"/proc/{trees_pid(site)}/status").read_text().splitlines()
    (resident,) = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]
    print(f"20 mounted directories are served with {resident:.0f} MiB")
    assert resident < 300
    for mount in mounts:
        site.rest.unmount(mount.id)
    assert list(site.site.mounts.iterdir()) == []
    assert not any(is_mounted(place) for place in places)


def test_what_somebody_unmounts_by_hand_is_told(site: LiveSite) -> None:
    """The mount's problem says so, and `dpac unmount` still ends it."""
    with mounted(site) as (mount, place):
        detach(place)
        until(lambda: "unmounted by somebody else" in listed(site, mount.id).problem, "it is said")


def test_a_drill_checks_the_databases_of_a_directory_where_they_are_mounted(site: LiveSite) -> None:
    """The blueprint's integrity check runs on the mount; the report names it, and the mount is gone after."""
    databases = site.folder / "databases"
    databases.mkdir()
    with closing(sqlite3.connect(databases / "orders.db")) as database:
        database.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, body TEXT)")
        database.executemany("INSERT INTO item (body) VALUES (?)", ((f"row {number}" * 20,) for number in range(500)))
        database.commit()
    site.protect("orders", {"db": {"kind": "directory", "path": str(databases), "blueprint": "sqlite"}})
    site.dpac("drill", "orders")
    (drill,) = [each for each in site.rest.operations(kind="Drill") if each.group == "orders"]
    report = DrillReport.model_validate(drill.result)
    assert report.members["db"].checks == {"every file authentic": "ok", "sqlite orders.db": "ok"}
    assert report.members["db"].checked_bytes == (databases / "orders.db").stat().st_size
    assert [step.name for step in drill.steps] == ["choose checkpoint", "open image", "mount", "directory db", "report"]
    assert site.rest.mounts() == []
    assert list(site.site.mounts.iterdir()) == []
