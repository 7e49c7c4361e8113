"""Restoring a tree: all or nothing, only into nothing, never outside of where it was told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dpac_api.errors import Conflict, Corruption, DpacError, Invalid, Temporary
from dpac_engine.core.entries import CHUNK_BYTES, ROOT, Entry, EntryType, digest_of, encode_entry
from dpac_engine.io.members.beneath import Beneath
from dpac_engine.io.members.tree_restore import Restoring, restore_tree

CONTENT = b"content"
CHUNKS = {digest_of(CONTENT): CONTENT}
FOLDER = Entry(EntryType.DIRECTORY, 0o750, os.getuid(), os.getgid(), 1_000_000_000)
FILE = Entry(
    EntryType.FILE, 0o640, os.getuid(), os.getgid(), 2_000_000_000, size=len(CONTENT), chunks=digest_of(CONTENT)
)


def link_to(target: bytes) -> Entry:
    """A symlink."""
    return Entry(EntryType.SYMLINK, 0o777, os.getuid(), os.getgid(), 3, target=target)


def restore(
    tree: dict[bytes, Entry], to: Path, read_chunk: Callable[[bytes], bytes] = CHUNKS.__getitem__
) -> tuple[int, list[int]]:
    """Bytes written, and what progress was told."""
    told: list[int] = []
    entries = ((path, encode_entry(entry).value) for path, entry in tree.items())
    return restore_tree(entries, read_chunk, to, told.append).written, told


def left(folder: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(os.listdir(folder))


def test_a_tree_comes_back_whatever_the_order_of_its_entries(tmp_path: Path) -> None:
    """Entries come in any order, a folder's own may be missing, progress adds up to the result."""
    written, told = restore({b"a/b/file": FILE, ROOT: FOLDER, b"a": FOLDER, b"file": FILE}, tmp_path / "to")
    assert written == sum(told) == 2 * len(CONTENT)
    assert (tmp_path / "to/a/b/file").read_bytes() == CONTENT
    assert (tmp_path / "to/a").stat().st_mtime_ns == 1_000_000_000
    assert (tmp_path / "to").stat().st_mode & 0o777 == 0o750
    assert left(tmp_path) == ["to"]


def test_a_tree_that_was_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    """Whatever an earlier try left: what is sound is not read again, what is not is, and links and modes come out right."""
    big = [bytes([number]) * CHUNK_BYTES for number in (1, 2, 3)]
    chunks = {digest_of(part): part for part in (*big, CONTENT)}
    whole = Entry(
        EntryType.FILE, 0o400, os.getuid(), os.getgid(), 5, size=3 * CHUNK_BYTES, chunks=b"".join(map(digest_of, big))
    )
    shared = msgspec.structs.replace(FILE, inode=(0, 7))
    tree = {
        ROOT: FOLDER, b"a": FOLDER, b"a/big": whole, b"a/one": shared, b"a/other": shared, b"file": FILE, b"l": link_to(b"a"),
    }  # fmt: skip
    read: list[bytes] = []

    def read_chunk(digest: bytes) -> bytes:
        read.append(digest)
        if len(read) > stop_after[0]:
            raise Temporary("The target went away.")
        return chunks[digest]

    for cut in range(5):
        to, partial, stop_after = tmp_path / f"to{cut}", tmp_path / f"partial{cut}", [cut]
        entries = [(path, encode_entry(entry).value) for path, entry in tree.items()]
        with pytest.raises(Temporary, match="went away"):
            restore_tree(entries, read_chunk, to, lambda _: None, partial=partial)
        assert not to.exists()
        for damaged in ("a/big", "file"):
            if (cut in (2, 4)) and (partial / damaged).exists():
                (partial / damaged).chmod(0o600)
                (partial / damaged).write_bytes(b"torn")
        done_before, stop_after[0] = len(read) - 1, 99
        found = restore_tree(entries, read_chunk, to, lambda _: None, partial=partial)
        assert sum(found) == 3 * CHUNK_BYTES + 2 * len(CONTENT)
        assert found.kept > 0 or cut in (0, 2, 4), (cut, found)
        if cut not in (2, 4):
            assert len(read) - 1 - done_before == 5 - cut, "what was there was read again"
        assert (to / "a/big").read_bytes() == b"".join(big)
        assert (to / "a/big").stat().st_mode & 0o777 == 0o400
        assert (to / "a/one").samefile(to / "a/other")
        assert (to / "file").read_bytes() == CONTENT
        assert os.readlink(to / "l") == "a"
        assert not partial.exists()
        read.clear()


def test_without_an_earlier_try_a_file_that_is_there_is_an_error(tmp_path: Path) -> None:
    """On a file system that takes two names for one, nothing is overwritten by the other."""
    (tmp_path / "partial").mkdir()
    with Beneath(tmp_path / "partial") as beneath:
        os.close(beneath.open(b"file", os.O_WRONLY | os.O_CREAT, 0o600))
        with pytest.raises(FileExistsError):
            Restoring(beneath, {b"file": FILE}, CHUNKS.__getitem__, lambda _: None, lambda _: (0, 0)).run()


def test_an_empty_folder_is_filled_in_place(tmp_path: Path) -> None:
    """A new disk's mount point is such a folder: it stays the same inode; what a killed restore left is cleared."""
    inode = tmp_path.stat().st_ino
    (tmp_path / ".dpac-restore-0123.partial" / "old").mkdir(parents=True)
    restore({ROOT: FOLDER, b"file": FILE}, tmp_path)
    assert left(tmp_path) == ["file"]
    assert tmp_path.stat().st_ino == inode
    assert tmp_path.stat().st_mtime_ns == 1_000_000_000


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    """A folder that holds anything, and a file, are a Conflict and stay as they are."""
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(Conflict, match="not empty"):
        restore({b"file": FILE}, tmp_path)
    with pytest.raises(Conflict, match="not a folder"):
        restore({b"file": FILE}, tmp_path / "mine")
    with pytest.raises(Invalid, match="does not exist"):
        restore({b"file": FILE}, tmp_path / "no" / "where")
    assert left(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    "path", [b"../escape", b"/etc/escape", b"a/../../escape", b"a//b", b"", b"a/", b"./a", b"a/.", b"nul\0"]
)
def test_a_path_that_leaves_the_tree_is_corruption(tmp_path: Path, path: bytes) -> None:
    """Not one file is written for a journal with such an entry."""
    with pytest.raises(Corruption, match="no path below"):
        restore({b"good": FILE, path: FILE}, tmp_path / "to")
    assert left(tmp_path) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """An entry below a symlink, or below a file, is corruption."""
    (tmp_path / "outside").mkdir()
    for above in (link_to(os.fsencode(tmp_path / "outside")), FILE):
        with pytest.raises(Corruption, match="no folder"):
            restore({b"link": above, b"link/file": FILE}, tmp_path / "to")
    assert left(tmp_path) == ["outside"]
    assert left(tmp_path / "outside") == []


@pytest.mark.parametrize("bad", [b"CONTENT", b"content and more", b""])
def test_a_chunk_that_is_not_what_was_written_is_corruption(tmp_path: Path, bad: bytes) -> None:
    """It is never served, and nothing of the restore is left."""
    with pytest.raises(Corruption, match="does not hold what was written"):
        restore({b"a/file": FILE}, tmp_path / "to", lambda _digest: bad)
    assert left(tmp_path) == []


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """Whatever the source raises goes through; the half of the tree that was written is removed."""
    calls: list[bytes] = []

    def fail_at_the_second(digest: bytes) -> bytes:
        calls.append(digest)
        if len(calls) > 1:
            assert [name for name in left(tmp_path) if name.endswith(".partial")], "it is visible as partial"
            raise DpacError("the target went away")
        return CHUNKS[digest]

    with pytest.raises(DpacError, match="went away"):
        restore({b"a": FILE, b"b": FILE}, tmp_path / "to", fail_at_the_second)
    assert left(tmp_path) == []


def test_names_of_one_inode_that_were_captured_apart_stay_apart(tmp_path: Path) -> None:
    """A hard link is made only between entries that are alike; else each name keeps its own version."""
    shared = Entry(
        EntryType.FILE, 0o640, os.getuid(), os.getgid(), 5, size=len(CONTENT), chunks=digest_of(CONTENT), inode=(0, 7)
    )
    older = Entry(EntryType.FILE, 0o600, os.getuid(), os.getgid(), 4, inode=(0, 7))
    restore({b"a": shared, b"b": shared, b"c": older}, tmp_path / "to")
    assert (tmp_path / "to/a").stat().st_nlink == 2
    assert (tmp_path / "to/c").stat().st_nlink == 1
    assert (tmp_path / "to/c").read_bytes() == b""


def test_files_are_written_in_the_order_in_which_they_are_stored(tmp_path: Path) -> None:
    """So that a target is read from end to end, whatever the files are called; a second name comes after the first."""
    contents = {digest_of(content): content for content in (b"one", b"two", b"three")}
    names = dict(zip((b"c", b"a", b"b"), contents, strict=True))
    tree = {
        path: Entry(EntryType.FILE, 0o640, os.getuid(), os.getgid(), 5, size=len(contents[digest]), chunks=digest)
        for path, digest in names.items()
    }
    again = Entry(EntryType.FILE, 0o640, os.getuid(), os.getgid(), 5, size=3, chunks=names[b"c"], inode=(0, 7))
    tree |= {b"x": again, b"d": again}
    entries = [(path, encode_entry(entry).value) for path, entry in {ROOT: FOLDER, **tree}.items()]
    read: list[bytes] = []

    def read_chunk(digest: bytes) -> bytes:
        read.append(contents[digest])
        return contents[digest]

    places = {digest: (0, at) for at, digest in enumerate(contents)}
    restore_tree(entries, read_chunk, tmp_path / "to", lambda _: None, place=places.__getitem__)
    assert read == [b"one", b"one", b"two", b"three"]
    assert {path: (tmp_path / "to" / path.decode()).read_bytes() for path in names} == {
        path: contents[digest] for path, digest in names.items()
    }
    assert (tmp_path / "to/x").samefile(tmp_path / "to/d")


def test_what_there_is_to_write_is_told_before_it_is_written(tmp_path: Path) -> None:
    """So that progress can say how much is left."""
    told: list[tuple[str, int]] = []
    entries = [(path, encode_entry(entry).value) for path, entry in {ROOT: FOLDER, b"a": FILE, b"b": FILE}.items()]
    restore_tree(
        entries,
        CHUNKS.__getitem__,
        tmp_path / "to",
        lambda count: told.append(("wrote", count)),
        lambda count: told.append(("expect", count)),
    )
    assert told[0] == ("expect", 2 * len(CONTENT))
    assert sum(count for what, count in told if what == "wrote") == 2 * len(CONTENT)
