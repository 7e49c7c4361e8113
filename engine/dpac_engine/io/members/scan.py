"""Scanning: which paths of a tree differ from what was captured, by their stat alone.

A scan reads no content. It holds no lock on the tree: what changes while it runs is found by the next one. What it
cannot list, it does not take for gone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dpac_engine.core.entries import ROOT
from dpac_engine.core.records import KEY_BYTES_MAX
from dpac_engine.io.blueprints.blueprint import Blueprint
from dpac_engine.io.members.beneath import Beneath, split

Signature = tuple[int, ...]
"""What a change to a path cannot leave as it was: mode, inode, whether it lies on another device than the root,
size, mtime, ctime, links; for a blueprint's data file, inode, size and mtime of each log beside it follow."""
_OWN_FIELDS = 7
_INODE_AT = 1
_FOREIGN_AT = 2
HEAD_BYTES = 16


class Captured(Protocol):
    """What a scan needs to know of a captured path."""

    @property
    def signature(self) -> Signature | None:
        """As of when it was read; None if it has to be read again in any case."""

    @property
    def covered(self) -> bool:
        """It was copied by the blueprint."""


@dataclass
class Difference:
    """What a scan found."""

    changed: dict[bytes, None] = field(default_factory=dict)
    """Paths to read, folders before what is in them."""
    vanished: set[bytes] = field(default_factory=set)
    findings: dict[bytes, str] = field(default_factory=dict)
    """Path -> why it could not be looked at."""
    seen: int = 0


def own_signature(found: os.stat_result, root_device: int) -> Signature:
    """The signature of what lies at a path, without logs beside it."""
    return (
        found.st_mode,
        found.st_ino,
        int(found.st_dev != root_device),
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_nlink,
    )


def log_signature(found: os.stat_result) -> Signature:
    """What is added to a data file's signature for a log beside it.

    Not its ctime: SQLite, run by root, sets a log's owner again each time it opens one, so that a copy would look
    like a change.
    """
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def read_head(tree: Beneath, path: bytes) -> bytes:
    """The first bytes of a file, or nothing where it cannot be read."""
    try:
        fd = tree.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.pread(fd, HEAD_BYTES, 0)
    except OSError:
        return b""
    finally:
        os.close(fd)


class Scan:
    """One scan of `tree` against what was `captured`. For one thread."""

    def __init__(self, tree: Beneath, captured: Mapping[bytes, Captured], blueprint: Blueprint | None) -> None:
        self.tree = tree
        self.captured = captured
        self.blueprint = blueprint
        self.difference = Difference()
        self._root_device = os.fstat(tree.root_fd).st_dev

    def everything(self) -> Difference:
        """Compare the whole tree."""
        self._compare(ROOT, os.fstat(self.tree.root_fd), {})
        seen = {ROOT}
        kept: set[bytes] = set()
        self._walk(b"", seen, kept)
        # Step by step, not as one difference of sets: that would hold the interpreter for as long as it takes.
        self.difference.vanished = {path for path in self.captured if path not in seen and not beneath_any(path, kept)}
        self.difference.seen = len(seen)
        return self.difference

    def paths(self, hints: Iterable[bytes]) -> Difference:
        """Compare the hinted paths, the folders they lie in, and everything below folders that are new."""
        wanted = {self._data_file(path) for path in hints}
        wanted |= {folder for path in wanted if path != ROOT for folder in self._folders_above(path)}
        gone: set[bytes] = set()
        for path in sorted(wanted, key=lambda path: (path != ROOT, path)):
            self._one(path, gone)
        if gone:
            self.difference.vanished |= {path for path in self.captured if beneath_any(path, gone)}
        self.difference.vanished -= self.difference.changed.keys()
        return self.difference

    def _folders_above(self, path: bytes) -> Iterator[bytes]:
        """The folder a path lies in, and those above it that were not captured yet: a hint may have been lost."""
        while True:
            path = split(path)[0] or ROOT
            yield path
            if path == ROOT or path in self.captured:
                return

    def _one(self, path: bytes, gone: set[bytes]) -> None:
        try:
            found = self.tree.lstat(b"" if path == ROOT else path)
        except (FileNotFoundError, NotADirectoryError):
            gone.add(path)
            return
        except OSError as error:
            self.difference.findings[path] = f"cannot be looked at: {error.strerror}"
            return
        before = self.captured.get(path)
        folder, name = split(path)
        self._compare(path, found, self._beside(folder, name) if stat.S_ISREG(found.st_mode) else {})
        inode_before = before.signature[_INODE_AT] if before is not None and before.signature is not None else None
        if not stat.S_ISDIR(found.st_mode):
            if before is not None and before.signature is not None and stat.S_ISDIR(before.signature[0]):
                self.difference.vanished |= {below for below in self.captured if below.startswith(path + b"/")}
        elif path != ROOT and inode_before != found.st_ino:
            seen: set[bytes] = set()
            kept: set[bytes] = set()
            self._walk(path, seen, kept)
            below = {known for known in self.captured if known.startswith(path + b"/")}
            self.difference.vanished |= {known for known in below - seen if not beneath_any(known, kept)}

    def _walk(self, start: bytes, seen: set[bytes], kept: set[bytes]) -> None:
        folders = [start]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.tree.folder(folder)) as listing:
                    found = dict(_statuses(listing))
            except (FileNotFoundError, NotADirectoryError):
                # It went after its own folder was listed: reading it finds that, with everything below.
                self.difference.changed.setdefault(folder or ROOT)
                kept.add(folder)
                continue
            except OSError as error:
                self.difference.findings[folder or ROOT] = f"cannot be listed: {error.strerror}"
                kept.add(folder)
                continue
            if self._lost_mount(folder, found):
                kept.add(folder)
                continue
            folders.extend(self._listed(folder, found, seen))

    def _listed(self, folder: bytes, found: dict[bytes, os.stat_result], seen: set[bytes]) -> Iterator[bytes]:
        """Compare what a folder holds; yields the folders in it."""
        for name, status in found.items():
            path = folder + b"/" + name if folder else name
            if len(path) > KEY_BYTES_MAX:
                self.difference.findings[path[:80] + b"..."] = f"has a path longer than {KEY_BYTES_MAX} bytes"
                continue
            if stat.S_ISREG(status.st_mode) and self._is_companion(folder, name, found):
                continue
            seen.add(path)
            self._compare(path, status, found)
            if stat.S_ISDIR(status.st_mode):
                yield path

    def _compare(self, path: bytes, found: os.stat_result, listing: Mapping[bytes, os.stat_result]) -> None:
        signature = own_signature(found, self._root_device)
        before = self.captured.get(path)
        if self.blueprint is not None and stat.S_ISREG(found.st_mode):
            logs = [log for log in self.blueprint.logs(split(path)[1]) if log in listing]
            if logs and self._is_data_file(path, found):
                for log in logs:
                    signature += log_signature(listing[log])
        if before is None or before.signature != signature:
            self.difference.changed.setdefault(path)

    def _is_data_file(self, path: bytes, found: os.stat_result) -> bool:
        assert self.blueprint is not None
        before = self.captured.get(path)
        known = before.signature[:_OWN_FIELDS] if before is not None and before.signature is not None else None
        if before is not None and known == own_signature(found, self._root_device):
            return before.covered
        return self.blueprint.recognises(read_head(self.tree, path))

    def _is_companion(self, folder: bytes, name: bytes, listing: Mapping[bytes, os.stat_result]) -> bool:
        if self.blueprint is None:
            return False
        owner = self.blueprint.companion_of(name)
        if owner is None or owner not in listing or not stat.S_ISREG(listing[owner].st_mode):
            return False
        return self._is_data_file(folder + b"/" + owner if folder else owner, listing[owner])

    def _beside(self, folder: bytes, name: bytes) -> dict[bytes, os.stat_result]:
        """The logs beside one file, as a listing of the folder would show them."""
        found: dict[bytes, os.stat_result] = {}
        for log in self.blueprint.logs(name) if self.blueprint is not None else ():
            try:
                found[log] = self.tree.lstat(folder + b"/" + log if folder else log)
            except OSError:
                continue
        return found

    def _data_file(self, path: bytes) -> bytes:
        """The path itself, or the data file it is a companion of."""
        if self.blueprint is None:
            return path
        folder, name = split(path)
        owner = self.blueprint.companion_of(name)
        if owner is None:
            return path
        owner = folder + b"/" + owner if folder else owner
        try:
            found = self.tree.lstat(owner)
        except OSError:
            return path
        return owner if stat.S_ISREG(found.st_mode) and self._is_data_file(owner, found) else path

    def _lost_mount(self, folder: bytes, found: dict[bytes, os.stat_result]) -> bool:
        """Whether a file system was mounted here, and an empty folder shows where it was."""
        before = self.captured.get(folder)
        if found or not folder or before is None or before.signature is None or not before.signature[_FOREIGN_AT]:
            return False
        lost = os.fstat(self.tree.folder(folder)).st_dev == self._root_device
        if lost:
            self.difference.findings[folder] = "was a mounted file system and is an empty folder now; mount it again"
            self.difference.changed.pop(folder, None)
        return lost


def _statuses(listing: Iterator[os.DirEntry[str]]) -> Iterator[tuple[bytes, os.stat_result]]:
    for item in listing:
        try:
            yield os.fsencode(item.name), item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue


def beneath_any(path: bytes, folders: set[bytes]) -> bool:
    """Whether the path is one of the folders or lies below one; the empty folder is the root, above everything."""
    if b"" in folders:
        return True
    while path:
        if path in folders:
            return True
        path = split(path)[0]
    return False
