"""Restoring a directory member's tree from its entries and chunks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpac_api.errors import Conflict, Corruption, Denied, DpacError, Invalid, Temporary
from dpac_engine.core.entries import ROOT, Entry, EntryType, decode_entry, digest_of
from dpac_engine.io.files import sync_folder
from dpac_engine.io.members.beneath import Beneath, split
from dpac_engine.io.members.read_ahead import ChunkRuns, ReadAhead, ReadChunk

_PARTIAL_PREFIX = ".dpac-restore-"
_PARTIAL_SUFFIX = ".partial"
_BLOCK_BYTES = 4096
_ZEROES = bytes(_BLOCK_BYTES)
_NODE_TYPES = {
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
}
IMPLIED_FOLDER = Entry(type=EntryType.DIRECTORY, mode=0o755, uid=0, gid=0, mtime_ns=0)
"""Stands for a folder above an entry that has none itself."""


class Written(NamedTuple):
    """What became of the content of the files, in bytes."""

    written: int
    kept: int
    """Those that lay there from an earlier try."""


def restore_tree(
    entries: Iterable[tuple[bytes, bytes]],
    read_chunk: ReadChunk,
    to: Path,
    progress: Callable[[int], None],
    expect: Callable[[int], None] = lambda _: None,
    place: Callable[[bytes], tuple[int, int]] = lambda _: (0, 0),
    partial: Path | None = None,
    runs: ChunkRuns = lambda _: iter(()),
) -> Written:
    """Recreate a tree at `to`, which is missing (its parent is not) or an empty folder.

    `entries` are keys and values of key space ENTRY in any order; `read_chunk` gives the content of a chunk by its
    hash, which is checked. `expect` is told the bytes there are to write (other names of one file counted too), and
    `progress` those of each piece as it is written. Files are written in the order of the places of their first chunks:
    `place` tells where a chunk is stored, and what `runs` finds of them is fetched ahead. Everything is on disk when this returns. Until then it lies in a folder named
    `.dpac-restore-*.partial`, which is removed on failure; or in `partial`, beside `to`, which stays: what an earlier call left
    there is not read from the target again, as far as its hashes are right.

    As root the owners are restored, and devices; else everything belongs to the caller and a device is Denied.
    Conflict if `to` holds anything; Corruption if an entry or chunk is not what was written, or would leave `to`.
    """
    tree = checked(entries, read_chunk)
    expect(sum(length for entry in tree.values() if entry.type is EntryType.FILE for _, length, _ in entry.pieces()))
    stays = partial is not None
    if partial is None:
        partial = _begin(to)
    try:
        try:
            partial.mkdir(mode=0o700, exist_ok=True)
            with Beneath(partial) as beneath:
                left = frozenset(_below(beneath)) if stays else frozenset[bytes]()
                restoring = Restoring(beneath, tree, read_chunk, progress, place, left, runs)
                restoring.run()
                sync_all(beneath.root_fd)
            _publish(partial, to, tree.get(ROOT))
        except OSError as error:
            raise of_dpac(error, to) from error
    except BaseException:
        if not stays:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return restoring.done


def _below(tree: Beneath) -> Iterator[bytes]:
    """Every path that an earlier try left; its folders can be written to again."""
    folders = [b""]
    while folders:
        folder = folders.pop()
        with os.scandir(tree.folder(folder)) as listing:
            found = [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in listing]
        for name, is_folder in found:
            path = folder + b"/" + name if folder else name
            if is_folder:
                os.chmod(name, 0o700, dir_fd=tree.folder(folder))
                folders.append(path)
            yield path


def checked(entries: Iterable[tuple[bytes, bytes]], read_chunk: ReadChunk) -> dict[bytes, Entry]:
    """The entries by path, every path proven to stay below the root, every folder above one present."""

    def listed(digest: bytes) -> bytes:
        return verified(read_chunk(digest), digest)

    tree: dict[bytes, Entry] = {}
    for path, value in entries:
        if path != ROOT and (b"\0" in path or any(name in (b"", b".", b"..") for name in path.split(b"/"))):
            raise Corruption(f"The entry {path!r} is no path below the member's root; nothing was restored.")
        tree[path] = decode_entry(value, listed)
    for path in list(tree):
        while (path := split(path)[0]) and path not in tree:
            tree[path] = IMPLIED_FOLDER
        if path and tree[path].type is not EntryType.DIRECTORY:
            raise Corruption(f"An entry lies below {path!r}, which is no folder; nothing was restored.")
    if ROOT in tree and tree[ROOT].type is not EntryType.DIRECTORY:
        raise Corruption("The entry of the member's root is no folder; nothing was restored.")
    return tree


def _begin(to: Path) -> Path:
    """The folder that the tree is built in; on the file system it will stay on."""
    name = f"{_PARTIAL_PREFIX}{secrets.token_hex(8)}{_PARTIAL_SUFFIX}"
    try:
        if not os.path.lexists(to):
            partial = to.parent / name
        else:
            left = [child for child in os.listdir(to) if not _is_partial(child)]
            if left:
                raise Conflict(f"{to} is not empty ({left[0]!r} lies in it). Restore to a new path or an empty folder.")
            for child in os.listdir(to):
                shutil.rmtree(to / child)
            partial = to / name
        partial.mkdir(mode=0o700)
    except FileNotFoundError as error:
        raise Invalid(f"{to.parent} does not exist. Create it, or restore to another path.") from error
    except NotADirectoryError as error:
        raise Conflict(f"{to} is not a folder. Restore to a new path or an empty folder.") from error
    except OSError as error:
        raise of_dpac(error, to) from error
    return partial


def _is_partial(name: str) -> bool:
    return name.startswith(_PARTIAL_PREFIX) and name.endswith(_PARTIAL_SUFFIX)


def _publish(partial: Path, to: Path, root: Entry | None) -> None:
    """Give the finished tree its name, its root's metadata last: moving changes times."""
    if partial.parent == to:
        for child in os.listdir(os.fsencode(partial)):
            os.rename(os.path.join(os.fsencode(partial), child), os.path.join(os.fsencode(to), child))
        partial.rmdir()
    else:
        os.rename(partial, to)
        sync_folder(to.parent)
    fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if root is not None:
            set_metadata(fd, root)
        os.fsync(fd)
    finally:
        os.close(fd)


class Restoring:
    """Writes a checked tree; each step in an order in which no path leads through a symlink."""

    def __init__(
        self,
        beneath: Beneath,
        tree: dict[bytes, Entry],
        read_chunk: ReadChunk,
        progress: Callable[[int], None],
        place: Callable[[bytes], tuple[int, int]],
        left: frozenset[bytes] = frozenset(),
        runs: ChunkRuns = lambda _: iter(()),
    ) -> None:
        """`left`: what an earlier try made here."""
        self.done = Written(0, 0)
        self._left = left
        self._beneath = beneath
        self._tree = tree
        self._read_chunk = read_chunk
        self._progress = progress
        self._place = place
        self._runs = runs
        self._first_names: dict[tuple[int, int], bytes] = {}

    def run(self) -> int:
        paths = sorted(path for path in self._tree if path != ROOT)
        folders = [path for path in paths if self._tree[path].type is EntryType.DIRECTORY]
        files = [path for path in paths if self._tree[path].type is EntryType.FILE]
        others = [path for path in paths if self._tree[path].type not in (EntryType.DIRECTORY, EntryType.FILE)]
        for path in folders:
            folder, name = split(path)
            if path not in self._left:
                os.mkdir(name, 0o700, dir_fd=self._beneath.folder(folder))
        # Which of an inode's names is the first does not depend on where content is stored; it is there before the others.
        for path in [*files, *others]:
            if (inode := self._tree[path].inode) is not None:
                self._first_names.setdefault(inode, path)
        links = [path for path in files if self._first_name(path) != path]
        contents = sorted(set(files).difference(links), key=self._stored_at)
        self._write_files(contents, links)
        for path in others:
            self._other(path, self._tree[path])
        # What a folder holds sets its times, and its mode may forbid to change that: folders last, deepest first.
        for path in sorted(folders, key=lambda path: -path.count(b"/")):
            if self._tree[path] is not IMPLIED_FOLDER:
                set_metadata(self._beneath.folder(path), self._tree[path])
        return self.done.written

    def _write_files(self, contents: list[bytes], links: list[bytes]) -> None:
        # What an earlier try left is not fetched unless it is damaged.
        entries = (self._tree[path] for path in contents if path not in self._left)
        wanted = ((digest, length) for entry in entries for _, length, digest in entry.pieces())
        with contextlib.closing(ReadAhead(self._runs, self._read_chunk, wanted)) as ahead:
            for path in [*contents, *links]:
                self._file(path, self._tree[path], ahead.read)

    def _stored_at(self, path: bytes) -> tuple[int, int]:
        digests = self._tree[path].digests
        return self._place(digests[0]) if digests else (-1, 0)

    def _file(self, path: bytes, entry: Entry, read_chunk: ReadChunk) -> None:
        if self._linked(path):
            return
        fd, is_left = self._opened(path)
        written = kept = 0
        try:
            if is_left or entry.sparse or entry.runs is not None:
                os.ftruncate(fd, entry.size)
            for offset, length, digest in entry.pieces():
                if is_left and digest_of(os.pread(fd, length, offset)) == digest:
                    kept += length
                else:
                    content = verified(read_chunk(digest), digest)
                    if len(content) != length:
                        raise Corruption(f"{path!r} lists a chunk of {len(content)} bytes where {length} belong.")
                    _write(fd, offset, content, entry.sparse and not is_left)
                    written += length
                self._progress(length)
            set_metadata(fd, entry)
        finally:
            os.close(fd)
        self.done = Written(self.done.written + written, self.done.kept + kept)

    def _opened(self, path: bytes) -> tuple[int, bool]:
        """A file to write, and whether an earlier try left it."""
        if path in self._left:
            try:
                return self._beneath.open(path, os.O_RDWR), True
            except PermissionError:  # its last mode is its own already, and this user is not root
                self._remove_left(path)
        return self._beneath.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), False

    def _remove_left(self, path: bytes) -> None:
        if path in self._left:
            folder, name = split(path)
            os.unlink(name, dir_fd=self._beneath.folder(folder))

    def _other(self, path: bytes, entry: Entry) -> None:
        if self._linked(path):
            return
        self._remove_left(path)
        folder, name = split(path)
        fd = self._beneath.folder(folder)
        if entry.type is EntryType.SYMLINK:
            os.symlink(entry.target, name, dir_fd=fd)
        else:
            device = os.makedev(*entry.device) if entry.device is not None else 0
            os.mknod(name, _NODE_TYPES[entry.type] | 0o600, device, dir_fd=fd)
        if os.geteuid() == 0:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        if entry.type is not EntryType.SYMLINK:
            # Just made here, and no link: nothing is followed.
            os.chmod(name, entry.mode, dir_fd=fd)
        for key, value in entry.xattrs:
            _set_xattr(self._beneath.by_proc(path), key, value)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=self._beneath.folder(folder), follow_symlinks=False)

    def _first_name(self, path: bytes) -> bytes:
        """The name that this one is another name of; itself, if it is none."""
        entry = self._tree[path]
        first = self._first_names.get(entry.inode, path) if entry.inode is not None else path
        return first if self._tree[first] == entry else path

    def _linked(self, path: bytes) -> bool:
        """Made as another name of a file that was restored already; only if the two were captured alike."""
        first = self._first_name(path)
        if first == path:
            return False
        self._remove_left(path)
        # A copy: looking up the second folder may close the first.
        from_fd = os.dup(self._beneath.folder(split(first)[0]))
        try:
            folder, name = split(path)
            to_fd = self._beneath.folder(folder)
            os.link(split(first)[1], name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
        finally:
            os.close(from_fd)
        return True


def verified(content: bytes, digest: bytes) -> bytes:
    """The chunk; Corruption if it is not the one with that hash."""
    if digest_of(content) != digest:
        raise Corruption(f"The chunk {digest.hex()} does not hold what was written. Verify the target it came from.")
    return content


def _write(fd: int, offset: int, content: bytes, sparse: bool) -> None:
    if not sparse:
        _write_all(fd, content, offset)
        return
    at = 0
    while at < len(content):
        end = at
        while end < len(content) and content[end : end + _BLOCK_BYTES] != _ZEROES:
            end += _BLOCK_BYTES
        if end > at:
            _write_all(fd, content[at:end], offset + at)
        at = max(end, at) + (_BLOCK_BYTES if end < len(content) else 0)


def _write_all(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def set_metadata(fd: int, entry: Entry) -> None:
    """Owner first: changing it clears set-user-id; times last. What is so already is not changed: that would be written, too."""
    found = os.fstat(fd)
    owns = os.geteuid() == 0 and (found.st_uid, found.st_gid) != (entry.uid, entry.gid)
    if owns:
        os.chown(fd, entry.uid, entry.gid)
    for key, value in entry.xattrs:
        _set_xattr(fd, key, value)
    if owns or entry.xattrs or stat.S_IMODE(found.st_mode) != entry.mode:
        os.chmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _set_xattr(at: int | bytes, key: bytes, value: bytes) -> None:
    try:
        os.setxattr(at, key, value, follow_symlinks=isinstance(at, int))
    except OSError as error:
        # Labels and capabilities need privileges or a matching file system; an application's own attributes do not.
        if key.startswith(b"user.") or error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            raise


def sync_all(fd: int) -> None:
    """Every file of the file system, in one call: with many small files an fsync each takes far longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def of_dpac(error: OSError, to: Path) -> DpacError:
    """What to say of a failure at `to`."""
    problem = f"The restore to {to} failed: {error.strerror}."
    if isinstance(error, PermissionError):
        return Denied(f"{problem} Restore as a user who may write there (devices need root).")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Temporary(f"{problem} Free some space, or restore to another path.")
    if error.errno in (errno.ENOTSUP, errno.EINVAL, errno.ENAMETOOLONG):
        return Invalid(f"{problem} That file system cannot hold what was captured; restore to another one.")
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return Conflict(f"{problem} Something else wrote there meanwhile; restore to a new path.")
    return DpacError(f"{problem} Look at the file system there, then restore again.")
