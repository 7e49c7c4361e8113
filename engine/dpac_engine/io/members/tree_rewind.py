"""Bringing a live directory back to a checkpoint: what differs is replaced, what was not there is removed.

New content is first written, whole and durable, to a folder of its own within the tree; then each file takes its place by a
rename. What is interrupted leaves every file either as it was or as it is to be, and perhaps that folder, which the next
run removes as something that was not there.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from dpac_api.errors import Invalid, Temporary
from dpac_engine.core.difference import FileChange
from dpac_engine.core.entries import ROOT, Entry, EntryType, decode_entry
from dpac_engine.core.image import TreeImage
from dpac_engine.io.blueprints.blueprint import Blueprint
from dpac_engine.io.members import tree_restore
from dpac_engine.io.members.beneath import Beneath, split
from dpac_engine.io.members.tally import Tally

_HEAD_BYTES = 16


def rewind_tree(
    root: Path,
    now: TreeImage,
    then: TreeImage,
    changed: Iterable[FileChange],
    blueprint: Blueprint | None,
    tally: Tally,
    stopping: threading.Event,
) -> None:
    """Make the folder `root`, which holds what `now` says, hold what `then` says; only `changed` differs. Blocks.

    Durable when it returns. Invalid, with nothing changed, if the disk lacks the room; Temporary once `stopping` is set;
    Corruption where what is stored is damaged.
    """
    tree = tree_restore.checked(then.entries(), then.read_chunk)
    paths = {change.path for change in changed if _differs(change, now, tree)}
    name = b".dpac-restore-%s.partial" % secrets.token_hex(8).encode()
    try:
        with Beneath(root) as live:
            rewind = _Rewind(live, tree, paths, blueprint, tally, stopping)
            try:
                rewind.stage(name, then)
                with Beneath(os.path.join(os.fsencode(root), name)) as staged:
                    rewind.clear(staged)
                    rewind.place(staged)
            finally:
                shutil.rmtree(os.path.join(os.fsencode(root), name), ignore_errors=True)
            rewind.finish_folders()
            tree_restore.sync_all(live.root_fd)
    except OSError as error:
        raise tree_restore.of_dpac(error, root) from error


def _differs(change: FileChange, now: TreeImage, tree: dict[bytes, Entry]) -> bool:
    """Whether more differs than until when a version is known to be the current one."""
    if change.size_before is None or change.size_after is None:
        return True
    before = decode_entry(now.read_entry(change.path), now.read_chunk)
    return msgspec.structs.replace(before, as_of=None) != msgspec.structs.replace(tree[change.path], as_of=None)


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    """Nothing lies there, or something that is no folder lies above it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise


class _Rewind:
    """One rewind at work, step by step."""

    def __init__(
        self,
        live: Beneath,
        tree: dict[bytes, Entry],
        changed: set[bytes],
        blueprint: Blueprint | None,
        tally: Tally,
        stopping: threading.Event,
    ) -> None:
        self._live = live
        self._tree = tree
        self._blueprint = blueprint
        self._tally = tally
        self._stopping = stopping
        linked = {tree[path].inode for path in changed if path in tree} - {None}
        # Names of one file come together: a link can be made to a file that is written, not to one that stays.
        together = {path for path, entry in tree.items() if entry.inode in linked} if linked else set()
        self._changed = (changed | together) - {ROOT}
        self._files = sorted(
            path for path in self._changed if path in tree and tree[path].type is not EntryType.DIRECTORY
        )

    def stage(self, name: bytes, then: TreeImage) -> None:
        """Write every file that is to be placed to the folder `name`."""
        entries = {path: self._tree[path] for path in self._files}
        goal = sum(length for entry in entries.values() for _, length, _ in entry.pieces())
        disk = os.fstatvfs(self._live.root_fd)
        if goal > disk.f_bavail * disk.f_frsize:
            raise Invalid(
                f"Going back needs {goal} bytes beside what lies there, and the disk has {disk.f_bavail * disk.f_frsize} free. Make room. "
                "Nothing was changed."
            )
        self._tally.total_bytes = goal
        for path in self._files:
            while path := split(path)[0]:
                entries.setdefault(path, tree_restore.IMPLIED_FOLDER)
        os.mkdir(name, 0o700, dir_fd=self._live.root_fd)
        with Beneath(b"/proc/self/fd/%d/%s" % (self._live.root_fd, name)) as staged:
            self._tally.bytes_written = tree_restore.Restoring(
                staged, entries, then.read_chunk, self._progress, then.chunk_place, runs=then.runs
            ).run()
            tree_restore.sync_all(staged.root_fd)

    def _progress(self, length: int) -> None:
        self._tally.done_bytes += length
        self._go_on()

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Temporary("It was stopped.")

    def clear(self, staged: Beneath) -> None:
        """Remove what was not there then, or was of another kind; logs of databases that are replaced go before these."""
        for path in sorted(self._changed, reverse=True):  # what lies in a folder comes before it
            self._go_on()
            self._drop_companions(path, staged)
            with _absent_is_fine():
                self._clear(path)
        self._live.forget()  # folders may have gone, to be made anew

    def _clear(self, path: bytes) -> None:
        is_folder = stat.S_ISDIR(self._live.lstat(path).st_mode)
        wanted = self._tree.get(path)
        if wanted is not None and (wanted.type is EntryType.DIRECTORY) == is_folder:
            return  # a file is replaced in one step
        folder, name = split(path)
        at = self._live.folder(folder)
        if is_folder:
            os.rmdir(name, dir_fd=at)
        else:
            os.unlink(name, dir_fd=at)
        self._tally.paths_removed += wanted is None

    def _drop_companions(self, path: bytes, staged: Beneath) -> None:
        """A log beside another database than its own would be taken for its own."""
        if self._blueprint is None or not (self._is_data(self._live, path) or self._is_data(staged, path)):
            return
        folder, name = split(path)
        for companion in self._blueprint.companions(name):
            where = folder + b"/" + companion if folder else companion
            if where not in self._tree:
                # Needs no sync before the database is replaced: names of one folder change in order.
                with _absent_is_fine():
                    os.unlink(companion, dir_fd=self._live.folder(folder))

    def _is_data(self, where: Beneath, path: bytes) -> bool:
        assert self._blueprint is not None
        with _absent_is_fine():
            if stat.S_ISREG(where.lstat(path).st_mode):
                with open(where.open(path, os.O_RDONLY), "rb") as file:
                    return self._blueprint.recognises(file.read(_HEAD_BYTES))
        return False

    def place(self, staged: Beneath) -> None:
        """Make the folders, and give every file its name."""
        for path in sorted(path for path in self._changed if path in self._tree and path not in self._files):
            folder, name = split(path)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._live.folder(folder))
            self._tally.paths_written += 1
        for path in self._files:
            self._go_on()
            folder, name = split(path)
            os.rename(name, name, src_dir_fd=staged.folder(folder), dst_dir_fd=self._live.folder(folder))
            self._tally.paths_written += 1

    def finish_folders(self) -> None:
        """Times and modes of folders, deepest first: what was done within them has changed their times."""
        touched = {ROOT} | {path for path in self._changed if path in self._tree and path not in self._files}
        for path in self._changed:
            while path := split(path)[0]:
                touched.add(path)
        for path in sorted(touched, key=lambda path: (path == ROOT, -path.count(b"/"))):
            entry = self._tree.get(path)
            if entry is None or entry.type is not EntryType.DIRECTORY or entry is tree_restore.IMPLIED_FOLDER:
                continue
            descriptor = self._live.root_fd if path == ROOT else self._live.folder(path)
            wanted = {key for key, _ in entry.xattrs}
            for key in os.listxattr(descriptor):
                if key.startswith("user.") and os.fsencode(key) not in wanted:
                    os.removexattr(descriptor, key)
            tree_restore.set_metadata(descriptor, entry)
