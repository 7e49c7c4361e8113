"""What a tree may throw at a directory member: each oddity comes back from a restore, or is named in the status."""

# ruff: noqa: ASYNC240 - the file system is the fixture here, and local
from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from dpac_api.errors import Temporary
from dpac_engine.io.members import chunks, directory, reading
from dpac_engine.io.members.beneath import Beneath
from dpac_engine.io.members.directory import ScanSettings
from tests.directories.journal import FoldingJournal
from tests.directories.members import QUICK, member_of, running, until
from tests.directories.trees import picture

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: devices, owners")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The member's folder."""
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


def captured(root: Path, journal: FoldingJournal) -> None:
    """One full capture, by a member of its own."""

    async def capture() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        await member.stop()

    asyncio.run(capture())


def assert_comes_back(root: Path) -> FoldingJournal:
    """What is in the tree is what a restore makes of a capture."""
    journal = FoldingJournal()
    captured(root, journal)
    journal.fold.restore(root.parent / "restored")
    assert picture(root.parent / "restored") == picture(root)
    return journal


def test_odd_names_come_back(root: Path) -> None:
    """Newlines, bytes that are no UTF-8, leading dashes and 255 bytes are names like any other."""
    for name in (b"new\nline", b"\xff\xfe", b"-rf *", b"x" * 255, b"...", b" ", b"tab\there", "ünï".encode()):
        (Path(os.fsdecode(os.path.join(os.fsencode(root), name)))).write_bytes(name)
    assert_comes_back(root)


def test_a_tree_deeper_than_a_path_may_be_long_comes_back(root: Path) -> None:
    """Folders are walked by descriptor: a path of 10,000 bytes is captured and restored."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 100, dir_fd=fd)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    journal = FoldingJournal()
    captured(root, journal)
    leaf = b"/".join([b"d" * 100] * 100 + [b"leaf"])
    assert leaf in journal.fold.entries
    journal.fold.restore(root.parent / "restored")
    again = FoldingJournal()
    shutil.move(root.parent / "restored", root.parent / "other")
    (root.parent / "second").mkdir()
    shutil.move(root.parent / "other", root.parent / "second" / "tree")
    captured(root.parent / "second" / "tree", again)
    assert again.fold.entries.keys() == journal.fold.entries.keys()


def test_links_of_both_kinds_come_back(root: Path) -> None:
    """Hard links share one inode again, symlinks point where they pointed, dangling or leading outside."""
    (root / "one").write_bytes(b"shared")
    (root / "folder").mkdir()
    os.link(root / "one", root / "folder" / "two")
    os.link(root / "one", root / "three")
    os.symlink("/etc/passwd", root / "outside")
    os.symlink("nowhere", root / "dangling")
    os.link(root / "dangling", root / "dangling too", follow_symlinks=False)
    assert_comes_back(root)
    assert (root.parent / "restored" / "one").stat().st_nlink == 3


def test_a_write_by_one_name_of_a_hard_link_is_captured_for_all(root: Path) -> None:
    """inotify names only the name that was written by; the others' entries follow in the same capture."""
    (root / "one").write_bytes(b"old")
    os.link(root / "one", root / "two")
    journal = FoldingJournal()

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        (root / "one").write_bytes(b"new")
        member._hint({b"one"})
        await member.capture()
        await member.stop()

    asyncio.run(run())
    journal.fold.restore(root.parent / "restored")
    assert picture(root.parent / "restored") == picture(root)


def test_sparse_files_come_back_as_sparse(root: Path) -> None:
    """Holes are neither read, nor put, nor restored as blocks of zeroes."""
    with open(root / "sparse", "wb") as file:
        file.seek(300 * 2**20)
        file.write(b"data")
        file.truncate(2**30)
    journal = assert_comes_back(root)
    assert journal.bytes_put() <= 256 * 1024
    assert (root.parent / "restored" / "sparse").stat().st_blocks * 512 <= 64 * 1024


def test_equal_content_is_put_once(root: Path) -> None:
    """Ten copies of a file are one set of chunks, deleted when the last copy goes and not before."""
    content = random.Random(7).randbytes(600_000)
    for number in range(10):
        (root / f"copy{number}").write_bytes(content)
    journal = assert_comes_back(root)
    assert journal.bytes_put() == len(content)
    for number in range(9):
        (root / f"copy{number}").unlink()
    captured(root, journal)
    assert len(journal.fold.chunks) == 3
    (root / "copy9").unlink()
    captured(root, journal)
    assert not journal.fold.chunks


@as_root
def test_metadata_of_every_type_comes_back(root: Path) -> None:
    """Modes with set-user-id, owners, times before 1970, attributes, FIFOs, sockets and devices."""
    (root / "tool").write_bytes(b"#!")
    os.chown(root / "tool", 1234, 4321)
    os.chmod(root / "tool", 0o6755)
    os.utime(root / "tool", ns=(0, -5_000_000_001))
    os.setxattr(root / "tool", "user.kind", b"\x00binary\xff")
    (root / "closed").mkdir(mode=0o000)
    os.setxattr(root / "closed", "user.kind", b"folder")
    os.chown(root / "closed", 77, 88)
    os.mkfifo(root / "fifo", 0o620)
    os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    os.symlink("tool", root / "link")
    os.chown(root / "link", 5, 6, follow_symlinks=False)
    os.utime(root / "link", ns=(0, 12345), follow_symlinks=False)
    os.utime(root, ns=(0, 1_000_000_000))
    assert_comes_back(root)


def test_a_file_that_keeps_changing_keeps_its_last_stable_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never goes missing: the entry says as of when, the cut is no newer than it, and it catches up at rest."""
    monkeypatch.setattr(reading, "_PAUSE_SECONDS", 0.001)
    log = root / "log"
    log.write_bytes(b"stable")
    journal = FoldingJournal()
    stop = threading.Event()

    def write_all_the_time() -> None:
        counter = 0
        while not stop.is_set():
            counter += 1
            log.write_bytes(b"%d" % counter * 300_000)

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        first = await member.capture(full=True)
        writer = threading.Thread(target=write_all_the_time)
        writer.start()
        try:
            cut = first
            stable = kept = journal.fold.decoded()[b"log"]
            while kept.as_of is None:
                stable, cut = kept, await member.capture(full=True)
                kept = journal.fold.decoded()[b"log"]
            assert (kept.size, kept.mtime_ns) == (stable.size, stable.mtime_ns)
            assert cut.as_of is not None
            assert first.as_of is not None
            assert cut.as_of.timestamp() == pytest.approx((kept.as_of or 0) / 1e9, abs=1e-3)
            assert "keeps changing: log" in member.status().message
            assert [condition.type for condition in member.conditions("member/x")] == ["FilesBehind"]
        finally:
            stop.set()
            writer.join()
        await member.capture(full=True)
        caught_up = journal.fold.decoded()[b"log"]
        assert (caught_up.as_of, caught_up.size) == (None, log.stat().st_size)
        assert member.status().message == ""
        await member.stop()

    # A file is stable only if it is seen unchanged for longer than this writer ever rests.
    monkeypatch.setattr(chunks, "check_same", _moved)
    monkeypatch.setattr(reading, "check_same", _moved)
    asyncio.run(run())


def _moved(*_arguments: object) -> None:
    raise chunks.Moved


def test_a_file_that_was_never_stable_is_reported_and_not_captured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No torn version is captured: the status names the file until a stable one is."""
    monkeypatch.setattr(reading, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(reading, "check_still", _moved)
    (root / "torn").write_bytes(b"half")
    journal = FoldingJournal()

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        cut = await member.capture(full=True)
        assert b"torn" not in journal.fold.entries
        assert cut.as_of is None
        assert "not captured yet: it keeps changing: torn" in member.status().message
        monkeypatch.setattr(reading, "check_still", chunks.check_still)
        cut = await member.capture(full=True)
        assert b"torn" in journal.fold.entries
        assert cut.as_of is not None
        await member.stop()

    asyncio.run(run())


def test_what_cannot_be_read_is_named_and_the_rest_captured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permission error is a finding: the capture goes on, and nothing is taken for deleted."""
    (root / "fine").write_bytes(b"1")
    (root / "secret").write_bytes(b"2")
    (root / "folder").mkdir()
    (root / "folder" / "inside").write_bytes(b"3")
    journal = FoldingJournal()
    captured(root, journal)
    (root / "fine").write_bytes(b"11")
    (root / "secret").write_bytes(b"22")

    real_open, real_folder = Beneath.open, Beneath.folder

    def deny_open(self: Beneath, path: bytes, flags: int, mode: int = 0) -> int:
        if path == b"secret":
            raise PermissionError(13, "Permission denied")
        return real_open(self, path, flags, mode)

    def deny_folder(self: Beneath, path: bytes) -> int:
        if path == b"folder":
            raise PermissionError(13, "Permission denied")
        return real_folder(self, path)

    # Root may read everything, so the refusal is made here.
    monkeypatch.setattr(Beneath, "open", deny_open)
    monkeypatch.setattr(Beneath, "folder", deny_folder)

    async def run() -> None:
        member = member_of(root, journal, root.parent / "member")
        await member.capture(full=True)
        assert set(member.findings()) == {"secret", "folder"}
        assert "Permission denied" in member.status().message
        assert member.status().state == "Attached"
        await member.stop()

    asyncio.run(run())
    now = journal.fold.decoded()
    assert now[b"fine"].size == 2
    assert now[b"secret"].size == 1
    assert now[b"secret"].as_of is not None
    assert b"folder/inside" in now


def test_a_missing_root_is_not_a_deleted_tree(root: Path) -> None:
    """Gone, or an empty folder in its place: the state is Missing, everything is kept, and it comes back by itself."""
    (root / "precious").write_bytes(b"1")
    journal = FoldingJournal()
    away = root.parent / "away"

    async def run() -> None:
        async with running(member_of(root, journal, root.parent / "member")) as member:
            root.rename(away)
            with pytest.raises(Temporary, match="cannot be opened"):
                await member.capture(full=True)
            assert member.status().state == "Missing"
            root.mkdir()
            with pytest.raises(Temporary, match="another folder than before, and empty"):
                await member.capture(full=True)
            assert [condition.type for condition in member.conditions("member/x")] == ["MemberMissing"]
            assert b"precious" in journal.fold.entries
            root.rmdir()
            away.rename(root)
            await until(lambda: member.status().state == "Attached", "the member is back")
            (root / "after").write_bytes(b"2")
            await until(lambda: b"after" in journal.fold.entries, "changes are watched again")

    asyncio.run(run())
    assert b"precious" in journal.fold.entries


def test_a_tree_with_a_link_to_a_folder_is_watched_and_the_link_not_followed(root: Path) -> None:
    """What lies behind a symlink is no part of the member; its own folders are still watched, new ones too."""
    outside = root.parent / "outside"
    outside.mkdir()
    os.symlink(outside, root / "link")
    journal = FoldingJournal()

    async def run() -> None:
        async with running(member_of(root, journal, root.parent / "member")):
            (outside / "foreign").write_bytes(b"1")
            (root / "new").mkdir()
            (root / "new" / "file").write_bytes(b"1")
            await until(lambda: b"new/file" in journal.fold.entries, "the new folder is captured")

    asyncio.run(run())
    assert not any(b"foreign" in path for path in journal.fold.entries)


def test_changes_of_names_that_cannot_be_watched_are_captured(root: Path) -> None:
    """The watch gives up on a name that is no UTF-8; a scan takes its place within moments."""
    journal = FoldingJournal()
    odd = Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe"))

    def sizes() -> dict[bytes, int]:
        return {path: entry.size for path, entry in journal.fold.decoded().items()}

    async def run() -> None:
        async with running(member_of(root, journal, root.parent / "member")):
            for content in (b"1", b"22", b"333"):
                odd.write_bytes(content)
                await until(lambda: sizes().get(b"\xff\xfe") == len(odd.read_bytes()), "the odd file is captured")

    asyncio.run(run())


def test_scans_find_what_no_hint_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any watch (inotify's limit reached) changes are found by scans, and the status says so."""

    def refuse(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory.TreeWatch, "start", refuse)
    journal = FoldingJournal()

    async def run() -> None:
        settings = ScanSettings(interval_seconds=0.1)
        async with running(member_of(root, journal, root.parent / "member", settings=settings)) as member:
            (root / "quiet").write_bytes(b"1")
            await until(lambda: b"quiet" in journal.fold.entries, "a scan finds the file")
            assert [condition.type for condition in member.conditions("member/x")] == ["WatchUnavailable"]

    asyncio.run(run())


def test_all_entries_of_a_large_capture_are_in_one_run(root: Path) -> None:
    """A capture beyond 8 MiB puts chunks ahead, and every entry in its last run: no mark divides it."""
    for number in range(6):
        (root / f"file{number}").write_bytes(random.Random(number).randbytes(4 * 2**20))
    journal = FoldingJournal()
    captured(root, journal)
    assert len(journal.runs) > 1
    with_entries = [changes for _, changes in journal.runs if any(change.keyspace == 0 for change in changes)]
    assert len(with_entries) == 1
    assert max(sum(len(c.value or b"") for c in changes) for _, changes in journal.runs) < 16 * 2**20


def test_capturing_rests(root: Path) -> None:
    """However much changes, captures of hints take no more than about a fifth of the time."""
    journal = FoldingJournal()

    async def run() -> None:
        async with running(member_of(root, journal, root.parent / "member", settings=QUICK)) as member:
            spans: list[tuple[float, float]] = []
            real = member._capture.run

            async def timed(*arguments: object, **options: object) -> None:
                began = member._now()
                await real(*arguments, **options)  # type: ignore[arg-type]
                if arguments[0] is not None:
                    spans.append((began, member._now()))

            member._capture.run = timed  # type: ignore[method-assign,assignment]
            number = 0
            while len(spans) < 5:
                number += 1
                (root / f"{number % 50}").write_bytes(b"%d" % number * 1000)
                await asyncio.sleep(0)
            for (began, ended), (following, _) in pairwise(spans):
                assert following - ended >= 3.9 * (ended - began)

    asyncio.run(run())
