"""Bringing a live tree back: from any tree to any other, and from wherever an interruption left it."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from dpac_api.errors import Invalid, Temporary
from dpac_engine.core.difference import FileChange
from dpac_engine.core.entries import ROOT, Entry, EntryType, decode_entry, digest_of, encode_entry
from dpac_engine.core.image import StoredRun
from dpac_engine.io.blueprints.sqlite import SqliteBlueprint
from dpac_engine.io.members.tally import Tally
from dpac_engine.io.members.tree_restore import restore_tree
from dpac_engine.io.members.tree_rewind import rewind_tree
from dpac_engine.io.open_files import writers_below
from tests.directories.trees import picture

ROUNDS = 30


class Tree:
    """A directory at a checkpoint, in memory (as `core.image.TreeImage`)."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.chunks: dict[bytes, bytes] = {}

    def put(self, path: bytes, entry: Entry) -> None:
        self.held[path] = encode_entry(entry).value

    def file(self, path: bytes, content: bytes, **fields: object) -> None:
        digest = digest_of(content)
        self.chunks[digest] = content
        made = Entry(EntryType.FILE, 0o640, os.getuid(), os.getgid(), 10**9, size=len(content), chunks=digest, **fields)  # type: ignore[arg-type]
        self.put(path, made)

    def paths(self) -> list[bytes]:
        return sorted(self.held)

    def read_entry(self, path: bytes) -> bytes:
        return self.held[path]

    def entries(self) -> list[tuple[bytes, bytes]]:
        return sorted(self.held.items())

    def chunk_place(self, digest: bytes) -> tuple[int, int]:
        return (0, 0)

    def read_chunk(self, digest: bytes) -> bytes:
        return self.chunks[digest]

    def runs(self, digests: Sequence[bytes]) -> Iterator[StoredRun]:
        return iter(())

    def restore(self, to: Path) -> None:
        restore_tree(self.entries(), self.read_chunk, to, lambda _: None)


def difference(now: Tree, then: Tree) -> list[FileChange]:
    """As `core.difference.changed_files`."""

    def size(tree: Tree, path: bytes) -> int | None:
        return decode_entry(tree.held[path], tree.read_chunk).size if path in tree.held else None

    return [
        FileChange(path, size(now, path), size(then, path))
        for path in sorted(now.held.keys() | then.held.keys())
        if now.held.get(path) != then.held.get(path)
    ]


def rewind(root: Path, now: Tree, then: Tree, stopping: threading.Event | None = None) -> Tally:
    tally = Tally()
    changed = difference(now, then)
    rewind_tree(root, now, then, changed, SqliteBlueprint(), tally, stopping or threading.Event())  # type: ignore[arg-type]
    return tally


def random_tree(chance: random.Random) -> Tree:
    """Few names, so that two trees have much in common and a name is a folder here and a file or link there."""
    tree = Tree()
    uid, gid = os.getuid(), os.getgid()

    def fill(folder: bytes, depth: int) -> None:
        xattrs = ((b"user.x", b"1"),) if chance.random() < 0.3 else ()
        tree.put(folder or ROOT, Entry(EntryType.DIRECTORY, 0o755, uid, gid, chance.randrange(10**9), xattrs=xattrs))
        for name in chance.sample([b"a", b"b", b"c", b"d"], chance.randrange(1, 5)):
            path = folder + b"/" + name if folder else name
            kind = chance.choice(["file", "file", "link", "fifo", "folder" if depth < 3 else "file"])
            if kind == "folder":
                fill(path, depth + 1)
            elif kind == "file":
                tree.file(path, chance.choice([b"one", b"two", chance.randbytes(20)]))
            elif kind == "fifo":
                tree.put(path, Entry(EntryType.FIFO, 0o600, uid, gid, 5))
            else:
                tree.put(path, Entry(EntryType.SYMLINK, 0o777, uid, gid, 7, target=chance.choice([b"a", b"/nowhere"])))

    fill(b"", 0)
    return tree


def test_any_tree_becomes_any_other(tmp_path: Path) -> None:
    """Content, kinds, modes, times, attributes; what is the same in both stays the very same file."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for round_number in range(ROUNDS):
        now, then = random_tree(chance), random_tree(chance)
        root, wanted = tmp_path / f"live-{round_number}", tmp_path / f"wanted-{round_number}"
        now.restore(root)
        then.restore(wanted)
        same = [path for path in now.held if now.held[path] == then.held.get(path)]
        inodes = {path: os.lstat(os.fsencode(root) + b"/" + path).st_ino for path in same}
        rewind(root, now, then)
        assert picture(root) == picture(wanted)
        assert {path: os.lstat(os.fsencode(root) + b"/" + path).st_ino for path in same} == inodes


def test_names_of_one_file_come_back_as_one(tmp_path: Path) -> None:
    """Also the one whose entry is the same in both."""
    now, then = Tree(), Tree()
    for tree, other in ((now, b"gone"), (then, b"two")):
        for name in (b"one", other):
            tree.file(name, b"content", inode=(1, 2))
    now.restore(tmp_path / "live")
    rewind(tmp_path / "live", now, then)
    assert (tmp_path / "live/one").stat().st_ino == (tmp_path / "live/two").stat().st_ino


def test_one_that_was_stopped_leaves_every_file_old_or_new_and_a_second_run_ends_it(tmp_path: Path) -> None:
    """At whatever moment it was stopped."""

    class StopsAt(threading.Event):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.left = count

        def is_set(self) -> bool:
            self.left -= 1
            return self.left < 0

    now, then = Tree(), Tree()
    for number in range(4):
        now.file(b"file-%d" % number, b"old")
        then.file(b"file-%d" % number, b"new!")
    for count in range(12):
        root = tmp_path / f"live-{count}"
        now.restore(root)
        with pytest.raises(Temporary, match="stopped"):
            rewind(root, now, then, StopsAt(count))
        assert {path.read_bytes() for path in root.iterdir()} <= {b"old", b"new!"}
        assert len(list(root.iterdir())) == 4
        rewind(root, now, then)
        assert {path.read_bytes() for path in root.iterdir()} == {b"new!"}


def test_the_log_of_another_database_is_gone_before_the_database_comes(tmp_path: Path) -> None:
    """SQLite would play it into what it does not belong to."""
    database = tmp_path / "made.db"
    with closing(sqlite3.connect(database)) as made:
        made.execute("CREATE TABLE t (x)")
    now, then = Tree(), Tree()
    now.file(b"orders.db", b"SQLite format 3\0 and something else")
    then.file(b"orders.db", database.read_bytes())
    now.restore(tmp_path / "live")
    for suffix in ("-wal", "-shm", "-journal"):
        (tmp_path / f"live/orders.db{suffix}").write_text("of the old one")
    (tmp_path / "live/other.txt-wal").write_text("no log")
    rewind(tmp_path / "live", now, then)
    assert sorted(path.name for path in (tmp_path / "live").iterdir()) == ["orders.db", "other.txt-wal"]


def test_nothing_is_changed_where_the_disk_lacks_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at before the first write."""
    now, then = Tree(), Tree()
    now.file(b"file", b"old")
    then.file(b"file", b"new!" * 1000)
    now.restore(tmp_path / "live")
    before = picture(tmp_path / "live")
    real = os.fstatvfs

    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr(os, "fstatvfs", lambda fd: Full() if real(fd) else None)
    with pytest.raises(Invalid, match="Nothing was changed"):
        rewind(tmp_path / "live", now, then)
    assert picture(tmp_path / "live") == before


def test_who_has_a_file_open_for_writing_is_found(tmp_path: Path) -> None:
    """Readers are not, nor is who writes elsewhere."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_text("x")
    program = "import sys; f = open(sys.argv[1], sys.argv[2]); print('open', flush=True); sys.stdin.read(1)"

    def found(path: Path, mode: str) -> list[str]:
        command = [sys.executable, "-c", program, str(path), mode]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seen = [path for pid, path in writers_below(tmp_path / "root") if pid == process.pid]
            process.communicate(b"x")
        return seen

    assert found(tmp_path / "root/file", "r+") == [str(tmp_path / "root/file")]
    assert found(tmp_path / "root/file", "r") == []
    assert found(tmp_path / "elsewhere", "w") == []
    shutil.rmtree(tmp_path / "root")
