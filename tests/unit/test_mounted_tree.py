"""Mounted trees without FUSE: the same operations on one and on a real folder leave the same tree, whenever it is opened anew."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dpac_api.errors import Corruption, Unreachable
from dpac_engine.core.entries import CHUNK_BYTES, EntryType
from dpac_engine.io.members.tree_reading import read_tree
from dpac_engine.io.mounted_tree.content import Content, make_content
from dpac_engine.io.mounted_tree.lower import Lower
from dpac_engine.io.mounted_tree.tree import MountedTree
from tests.directories.stored import StoredFold, captured

ROUNDS = 400
NAMES = [f"n{number}".encode() for number in range(6)]


def make_tree(root: Path, chance: random.Random) -> None:
    """A few folders with small files, some of several names, and one that is large and has holes."""
    root.mkdir()
    for folder in ("", "n0", "n1", "n1/n2"):
        (root / folder).mkdir(exist_ok=True)
        for name in ("n3", "n4"):
            (root / folder / name).write_bytes(chance.randbytes(chance.randrange(20_000)))
    os.link(root / "n3", root / "n1" / "n5")
    os.link(root / "n0" / "n4", root / "n1" / "n2" / "n5")
    with (root / "n5").open("wb") as file:
        file.write(chance.randbytes(5000))
        file.seek(5 * CHUNK_BYTES + 77)
        file.write(chance.randbytes(70_000))
    os.symlink("n3", root / "n0" / "n5")


class Rig:
    """A mounted tree, and the folder that it shall be like."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.real, self.state = folder / "real", folder / "state"
        self.state.mkdir()
        make_tree(self.real, chance)
        self.stored = captured(self.real, folder / "scratch")
        self.open()

    def open(self) -> None:
        """Open it, as after a restart."""
        self.tree = MountedTree(Lower(self.stored), self.state, "one boot")

    def reopen(self) -> None:
        """A process that was killed closes nothing."""
        self.open()

    def seen(self, path: bytes = b"") -> dict[bytes, tuple[object, ...]]:
        """What the mounted tree shows."""
        found: dict[bytes, tuple[object, ...]] = {}
        groups: dict[int, bytes] = {}
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            for name, _, bits in sorted(self.tree.listing(self.tree.find(folder))):
                place = folder + b"/" + name if folder else name
                node = self.tree.find(place)
                status = self.tree.status(node)
                assert stat.S_IFMT(status["st_mode"]) == bits
                content: object = node.target
                if node.type is EntryType.FILE:
                    self.tree.open(node)
                    content = self.tree.read(node, 0, status["st_size"] + 10)
                    self.tree.release(node)
                elif node.type is EntryType.DIRECTORY:
                    waiting.append(place)
                shared = status["st_nlink"] > 1
                group = groups.setdefault(status["st_ino"], place) if shared else None
                found[place] = (status["st_mode"], _size(status), content, node.xattrs, shared, group)
        return found

    def wanted(self) -> dict[bytes, tuple[object, ...]]:
        """What the real folder shows."""
        found: dict[bytes, tuple[object, ...]] = {}
        groups: dict[int, bytes] = {}
        top = os.fsencode(self.real)
        waiting = [b""]
        while waiting:
            folder = waiting.pop()
            for name in sorted(os.listdir(os.path.join(top, folder))):
                place = folder + b"/" + name if folder else name
                path = os.path.join(top, place)
                known = os.lstat(path)
                content: object = b""
                if stat.S_ISREG(known.st_mode):
                    content = Path(os.fsdecode(path)).read_bytes()
                elif stat.S_ISLNK(known.st_mode):
                    content = os.readlink(path)
                else:
                    waiting.append(place)
                xattrs = {
                    os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                }
                shared = known.st_nlink > 1 and not stat.S_ISDIR(known.st_mode)
                group = groups.setdefault(known.st_ino, place) if shared else None
                size = {"st_mode": known.st_mode, "st_size": known.st_size}
                found[place] = (known.st_mode, _size(size), content, xattrs, shared, group)
        return found


def _size(status: dict[str, int]) -> int | None:
    return None if stat.S_ISDIR(status["st_mode"]) else status["st_size"]


def both(mounted: Callable[[], object], real: Callable[[], object]) -> None:
    """Do it to both: where one fails the other does."""
    outcomes = []
    for act in (mounted, real):
        try:
            act()
            outcomes.append("done")
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno or 0])
    assert outcomes.count("done") != 1, outcomes


def step(rig: Rig, chance: random.Random) -> str:
    """One operation on both."""
    tree = rig.tree
    path, other = (b"/".join(chance.choice(NAMES) for _ in range(chance.randrange(1, 4))) for _ in range(2))
    real, real_other = os.path.join(os.fsencode(rig.real), path), os.path.join(os.fsencode(rig.real), other)
    offset, data = chance.randrange(12_000), chance.randbytes(chance.randrange(1, 9000))

    def written(do: Callable[[object], None]) -> Callable[[], None]:
        def act() -> None:
            node = tree.find(path)
            if node.type is not EntryType.FILE:
                raise OSError(errno.EISDIR, "not a file")
            tree.open(node)
            try:
                do(node)
            finally:
                tree.release(node)

        return act

    def really(do: Callable[[int], object]) -> Callable[[], None]:
        def act() -> None:
            descriptor = os.open(real, os.O_RDWR | os.O_NOFOLLOW)
            try:
                do(descriptor)
            finally:
                os.close(descriptor)

        return act

    def moved() -> None:
        if other.startswith(path + b"/"):  # the kernel refuses it before
            raise OSError(errno.EINVAL, "below itself")
        tree.rename(path, other, replace=True)

    what = chance.choice(
        [
            "write",
            "write",
            "truncate",
            "zero",
            "make",
            "mkdir",
            "symlink",
            "link",
            "unlink",
            "rmdir",
            "rename",
            "rename",
            "chmod",
            "xattr",
        ]
    )
    if what == "write":
        node_write = written(lambda node: tree.write(node, offset, data))  # type: ignore[arg-type]
        if not os.path.islink(real):
            both(node_write, really(lambda fd: os.pwrite(fd, data, offset)))
    elif what == "truncate" and not os.path.islink(real):
        both(written(lambda node: tree.truncate(node, offset)), really(lambda fd: os.ftruncate(fd, offset)))  # type: ignore[arg-type]
    elif what == "zero" and not os.path.islink(real):

        def blank(fd: int) -> None:
            size = os.fstat(fd).st_size
            os.pwrite(fd, bytes(max(0, min(len(data), size - offset))), offset)

        both(written(lambda node: tree.zero(node, offset, len(data), extend=False)), really(blank))  # type: ignore[arg-type]
    elif what == "make":
        both(
            lambda: tree.make(path, stat.S_IFREG | 0o644, os.geteuid(), os.getegid()),
            lambda: os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
        )
    elif what == "mkdir":
        both(
            lambda: tree.make(path, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid()),
            lambda: os.mkdir(real, 0o755),
        )
    elif what == "symlink":
        both(
            lambda: tree.make(path, stat.S_IFLNK | 0o777, os.geteuid(), os.getegid(), b"to"),
            lambda: os.symlink(b"to", real),
        )
    elif what == "link" and not os.path.isdir(real):
        both(lambda: tree.link(tree.find(path), other), lambda: os.link(real, real_other, follow_symlinks=False))
    elif what == "unlink":
        both(lambda: tree.remove(path, folder=False), lambda: os.unlink(real))
    elif what == "rmdir":
        both(lambda: tree.remove(path, folder=True), lambda: os.rmdir(real))
    elif what == "rename":
        both(moved, lambda: os.rename(real, real_other))
    elif what == "chmod" and not os.path.islink(real):
        mode = chance.choice([0o600, 0o755, 0o700])
        both(lambda: tree.change(tree.find(path), mode=mode), lambda: os.chmod(real, mode))
    elif what == "xattr" and not os.path.islink(real):
        both(
            lambda: tree.set_xattr(tree.find(path), b"user.x", data[:9]),
            lambda: os.setxattr(real, b"user.x", data[:9]),
        )
    return f"{what} {path!r} {other!r} {offset}+{len(data)}"


@pytest.fixture(autouse=True)
def _plain_umask() -> None:
    os.umask(0o022)


def test_a_mounted_tree_is_changed_as_a_real_folder_is(tmp_path: Path, seed: int) -> None:
    """Writes, cuts, links, renames of folders and files, removals and attributes; opened anew at any moment it is the same."""
    chance = random.Random(seed)
    rig = Rig(tmp_path, chance)
    done: list[str] = []
    for number in range(ROUNDS):
        done.append(step(rig, chance))
        if chance.random() < 0.1:
            rig.reopen()
        if number % 20 == 19:
            assert rig.seen() == rig.wanted(), done
    rig.reopen()
    assert rig.seen() == rig.wanted()


def test_nothing_of_removed_files_stays(tmp_path: Path, seed: int) -> None:
    """Once a file has no name and nobody has it open its content is deleted; what a crash left is at the next start."""
    rig = Rig(tmp_path, random.Random(seed))
    tree = rig.tree
    node = tree.make(b"new", stat.S_IFREG | 0o600, 0, 0)
    tree.open(node)
    tree.write(node, 0, b"x" * 100)
    tree.remove(b"new", folder=False)
    assert tree.read(node, 0, 200) == b"x" * 100
    tree.write(node, 100, b"y")
    assert list((rig.state / "content").iterdir()) != []
    tree.release(node)
    assert list((rig.state / "content").iterdir()) == []
    tree.make(b"again", stat.S_IFREG | 0o600, 0, 0)
    open_at_the_end = tree.find(b"again")
    tree.open(open_at_the_end)
    tree.remove(b"again", folder=False)
    rig.reopen()
    assert list((rig.state / "content").iterdir()) == []
    shutil.rmtree(rig.state)


def test_a_write_to_a_large_file_reads_only_the_blocks_it_begins_and_ends_in(tmp_path: Path) -> None:
    """However large the file is, and whatever lies between."""
    asked: list[tuple[int, int]] = []

    def lower(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return b"l" * length

    make_content(tmp_path / "1", 10**9)
    content = Content(tmp_path / "1", lower, 10**9, 10**9, "boot")
    content.write(5000, b"w" * 100_000)
    assert asked == [(4096, 4096), (102_400, 4096)]
    assert content.read(4990, 20) == b"l" * 10 + b"w" * 10
    assert content.read(104_990, 20) == b"w" * 10 + b"l" * 10
    assert (tmp_path / "1" / "data").stat().st_blocks * 512 < 200_000
    content.close()


def test_after_a_power_cut_a_file_is_as_it_was_synced_and_never_of_zeroes(tmp_path: Path) -> None:
    """What was written since the last fsync may be lost, block by block; the checkpoint's content is seen there again."""
    make_content(tmp_path / "1", 50_000)
    content = Content(tmp_path / "1", lambda _, length: b"l" * length, 50_000, 50_000, "boot 1")
    content.write(0, b"a" * 4096)
    content.sync()
    content.write(8192, b"b" * 4096)
    os.pwrite(os.open(tmp_path / "1" / "data", os.O_WRONLY), bytes(4096), 8192)  # the power cut took the data
    again = Content(tmp_path / "1", lambda _, length: b"l" * length, 50_000, 50_000, "boot 2")
    assert again.read(0, 50_000) == b"a" * 4096 + b"l" * (50_000 - 4096)
    again.close()


def test_what_was_cut_off_does_not_come_back(tmp_path: Path) -> None:
    """A file that is cut and grows again has zeroes there, also if the process ended between the cut and its being noted."""
    make_content(tmp_path / "1", 20_000)
    content = Content(tmp_path / "1", lambda _, length: b"l" * length, 20_000, 20_000, "boot")
    content.truncate(5000)
    content.close()
    again = Content(tmp_path / "1", lambda _, length: b"l" * length, 20_000, 20_000, "boot")
    again.truncate(15_000)
    assert again.read(0, 20_000) == b"l" * 5000 + bytes(10_000)
    again.write(6000, b"w")
    assert again.read(4990, 1011) == b"l" * 10 + bytes(1000) + b"w"
    again.close()


class Faulty(StoredFold):
    """A target that is away, or that gives back what nobody wrote."""

    def __init__(self, stored: StoredFold) -> None:
        super().__init__(stored._fold)
        self.fault = ""

    def read_chunk(self, digest: bytes) -> bytes:
        if self.fault == "away":
            raise Unreachable("The target is away.")
        chunk = super().read_chunk(digest)
        return bytes(len(chunk)) if self.fault == "damaged" else chunk


def test_what_cannot_be_read_is_never_made_up(tmp_path: Path, seed: int) -> None:
    """A target that is away, or whose chunk is not what was written, is an error; names and what was written are there as ever,
    and a write that needs some of it changes nothing."""
    rig = Rig(tmp_path, random.Random(seed))
    stored = Faulty(rig.stored)
    tree = MountedTree(Lower(stored), rig.state, "one boot")
    node = tree.find(b"n5")
    tree.open(node)
    for fault, error in (("away", Unreachable), ("damaged", Corruption)):
        stored.fault = fault
        with pytest.raises(error):
            tree.read(node, 0, 10)
        with pytest.raises(error):
            tree.write(node, 10, b"part of a block")
        tree.write(node, 8192, b"w" * 4096)
        assert tree.read(node, 8192, 4096) == b"w" * 4096
        assert {name for name, _, _ in tree.listing(tree.find(b""))} == {b"n0", b"n1", b"n3", b"n4", b"n5"}
    stored.fault = ""
    real = (rig.real / "n5").read_bytes()
    assert tree.read(node, 0, 12_288) == real[:8192] + b"w" * 4096
    tree.release(node)


def test_readers_and_writers_of_one_file_do_not_hold_each_other_up(tmp_path: Path, seed: int) -> None:
    """While one thread waits for the target, names are listed and another file is written."""
    rig = Rig(tmp_path, random.Random(seed))
    asked, answer = threading.Event(), threading.Event()

    class Slow(StoredFold):
        def read_chunk(self, digest: bytes) -> bytes:
            asked.set()
            assert answer.wait(60)
            return super().read_chunk(digest)

    tree = MountedTree(Lower(Slow(rig.stored._fold)), rig.state, "one boot")
    node, other = tree.find(b"n5"), tree.make(b"other", stat.S_IFREG | 0o600, 0, 0)
    for each in (node, other):
        tree.open(each)
    reader = threading.Thread(target=lambda: tree.read(node, 0, 10), daemon=True)
    reader.start()
    try:
        assert asked.wait(60)
        tree.write(other, 0, b"meanwhile")
        assert tree.read(other, 0, 9) == b"meanwhile"
        assert len(list(tree.listing(tree.find(b"")))) == 6
    finally:
        answer.set()
        reader.join(60)


def test_reading_a_whole_tree_finds_what_a_restore_would(tmp_path: Path, seed: int) -> None:
    """Each chunk once; one that is missing, or not what was written, is found."""
    rig = Rig(tmp_path, random.Random(seed))
    stored, told = Faulty(rig.stored), list[tuple[int, int]]()
    entries = [(path, stored.read_entry(path)) for path in stored.paths()]

    def read() -> int:
        return read_tree(entries, stored.read_chunk, lambda _: (0, 0), lambda done, goal: told.append((done, goal)))

    expected = sum(len(chunk) for chunk in rig.stored._fold.chunks.values())
    assert read() == expected
    assert told[-1] == (expected, expected)
    stored.fault = "damaged"
    with pytest.raises(Corruption):
        read()
