"""An application that keeps files in a directory: what it does, and what each path held when.

Among plain files it has a small database, `ledger.db`: while it commits, the former content lies in `ledger.db-log`, and pages of
the file change one after the other. Whoever finds a log takes that for the content. `Ledger` is its blueprint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from dpac_engine.core.entries import ROOT, EntryType, decode_entry
from dpac_engine.core.image import TreeImage
from dpac_engine.io.blueprints.blueprint import Copied, Unsettled
from tests.simulation import host, tree_calls, world
from tests.simulation.oracle import Wrong

MAGIC = b"a simulated ledger\n"
DATABASE, LOG = "ledger.db", "ledger.db-log"
PAGE = 512
_NAMES = ["a", "b", "c", "sub/a", "sub/d", "sub/deep/e", "other/f"]
_FOLDER = b"(a folder)"


class Version(NamedTuple):
    """What a path holds from a moment on."""

    since_ns: int
    content: bytes | None
    """None: nothing is there."""


class Ledger:
    """The blueprint (`io/blueprints/blueprint.py`)."""

    name = "ledger"

    def recognises(self, head: bytes) -> bool:
        """See `Blueprint.recognises`."""
        return head.startswith(MAGIC[:16])

    def companions(self, name: bytes) -> tuple[bytes, ...]:
        """See `Blueprint.companions`."""
        return (name + b"-log",)

    logs = companions

    def companion_of(self, name: bytes) -> bytes | None:
        """See `Blueprint.companion_of`."""
        return name.removesuffix(b"-log") if name.endswith(b"-log") else None

    def copy(self, source: bytes, scratch: Path) -> Copied:
        """See `Blueprint.copy`."""
        before = _content(source + b"-log")
        content = _content(source)
        if before != _content(source + b"-log") or content is None:
            raise Unsettled("A commit came in between.")
        calls: Any = tree_calls.OS
        mtime_ns = calls.stat(source).st_mtime_ns
        here = host.current()
        descriptor = here.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        here.pwrite(descriptor, content if before is None else before, 0)
        here.close(descriptor)
        return Copied(scratch, mtime_ns)

    def check(self, root: Path) -> dict[str, str]:
        """See `Blueprint.check`: nothing is restored here."""
        raise NotImplementedError


def _content(path: bytes) -> bytes | None:
    world.current().pause(tree_calls.CALL_NS)
    disk = host.current().disk
    try:
        node = disk.find(path.decode())
    except FileNotFoundError:
        return None
    return disk.read(node, 0, node.size)


class Tree:
    """One directory, and what lay at each path in it at each moment."""

    def __init__(self, path: str, chance: Random, *, covered: bool) -> None:
        self.path = path
        self.covered = covered
        """Its database is copied by the blueprint."""
        self._chance = chance
        self._versions: dict[bytes, list[Version]] = {}
        self._commits = 0
        here = host.current()
        here.disk.make(path, tree_calls.FOLDER_MODE)
        self._changed("")
        self._write("a", b"the first")
        self._set(DATABASE, self._page() + self._page())

    # ------------------------------------------------------------------ what the application does

    def act(self) -> Iterator[float]:
        """Something; yields for how many seconds it rests in between."""
        names = self._names()
        what = self._chance.choice(
            ["write", "write", "grow", "append", "remove", "rename", "remove folder", "commit", "commit"]
        )
        name = self._chance.choice(names)
        if what == "commit":
            yield from self._commit()
        elif what in ("write", "grow"):
            self._write(self._chance.choice(_NAMES), self._bytes(), append=False)
        elif what == "append":
            for _ in range(self._chance.randint(1, 4)):
                self._write(name, self._bytes(), append=True)
                yield self._chance.choice([0.0, 0.0005, 0.003, 0.02])
        elif what == "remove" and len(names) > 1:
            self._remove(name)
        elif what == "rename":
            self._rename(name, self._chance.choice(_NAMES))
        elif what == "remove folder":
            self._remove_folder(self._chance.choice(["sub", "other"]))
        yield 0.0

    def _commit(self) -> Iterator[float]:
        old = self._read(DATABASE)
        new = self._page() + self._page()
        self._set(LOG, old)
        for at in range(0, len(new), PAGE):
            yield self._chance.choice([0.0, 0.001, 0.03])
            self._set(DATABASE, new[at : at + PAGE], offset=at)
        yield self._chance.choice([0.0, 0.001, 0.03])
        self._unlink(LOG)
        self._commits += 1

    def recover(self) -> None:
        """The application starts after an end in the middle of something: what was not committed is undone."""
        if LOG in self._folder("").names:
            self._set(DATABASE, self._read(LOG))
            self._unlink(LOG)

    def _page(self) -> bytes:
        return (MAGIC + self._chance.randbytes(24)).ljust(PAGE, b".")

    def _bytes(self) -> bytes:
        return self._chance.randbytes(self._chance.choice([0, 1, 40, 40, 3000, 9000]))

    def _names(self) -> list[str]:
        disk = host.current().disk
        found = list[str]()
        for name in _NAMES:
            try:
                disk.find(f"{self.path}/{name}")
                found.append(name)
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found or ["a"]

    def _write(self, name: str, data: bytes, *, append: bool = False) -> None:
        try:
            old = self._read(name)
        except FileNotFoundError:
            old = b""
        if not append and old:
            self._truncate(name)
            old = b""
        self._set(name, data, offset=len(old))

    # ------------------------------------------------------------------ on the host's disk, durable at once

    def _folder(self, name: str) -> Any:
        return host.current().disk.find(f"{self.path}/{name}")

    def _read(self, name: str) -> bytes:
        node = self._folder(name)
        return host.current().disk.read(node, 0, node.size)

    def _make_folders(self, name: str) -> None:
        above = name.rpartition("/")[0]
        if above:
            self._make_folders(above)
            try:
                self._folder(above)
            except FileNotFoundError:
                host.current().disk.make(f"{self.path}/{above}", tree_calls.FOLDER_MODE)
                self._changed(above)

    def _set(self, name: str, data: bytes, *, offset: int = 0) -> None:
        self._make_folders(name)
        disk, path = host.current().disk, f"{self.path}/{name}"
        try:
            node = disk.find(path)
        except FileNotFoundError:
            node = disk.make(path, tree_calls.FILE_MODE)
        disk.write(node, offset, data, tree_calls.tick_ns())
        self._changed(name)

    def _truncate(self, name: str) -> None:
        host.current().disk.truncate(self._folder(name), 0, tree_calls.tick_ns())
        self._changed(name)

    def _unlink(self, name: str) -> None:
        host.current().disk.remove(f"{self.path}/{name}")
        self._changed(name)

    def _remove(self, name: str) -> None:
        try:
            self._unlink(name)
        except FileNotFoundError:
            return

    def _rename(self, old: str, new: str) -> None:
        try:
            node = self._folder(old)
        except FileNotFoundError:
            return
        if old != new:
            self._make_folders(new)
            host.current().disk.rename(f"{self.path}/{old}", f"{self.path}/{new}")
            node.mtime_ns = max(node.mtime_ns + 1, tree_calls.tick_ns())  # its ctime, which is the same here
            self._changed(old)
            self._changed(new)

    def _remove_folder(self, name: str) -> None:
        try:
            names = sorted(self._folder(name).names)
        except FileNotFoundError:
            return
        for below in names:
            child = f"{name}/{below}"
            self._remove_folder(child) if self._folder(child).is_folder else self._unlink(child)
        self._unlink(name)

    def _changed(self, name: str) -> None:
        """Note what lies there now, make it durable, and let watches know."""
        here = host.current()
        at = f"{self.path}/{name}" if name else self.path
        content: bytes | None
        try:
            node = here.disk.find(at)
            content = _FOLDER if node.is_folder else here.disk.read(node, 0, node.size)
            here.disk.sync(node)
        except FileNotFoundError:
            content = None
        folder = here.disk.find(at.rpartition("/")[0])
        folder.mtime_ns = tree_calls.tick_ns()
        here.disk.sync(folder)
        path = name.encode() or ROOT
        self._versions.setdefault(path, [Version(0, None)]).append(Version(here.world.now_ns, content))
        for root, told in list(here.watches):
            if root == self.path:
                told(path)

    # ------------------------------------------------------------------ what was there when

    @property
    def changed_ns(self) -> int:
        """When anything changed last."""
        return max(versions[-1].since_ns for versions in self._versions.values())

    def _held(self, path: bytes) -> list[Version]:
        """What whoever asks for the path gets: of a database under its blueprint what was committed last."""
        versions = self._versions.get(path, [Version(0, None)])
        if not self.covered or path != DATABASE.encode():
            return versions
        logs = self._versions.get(LOG.encode(), [Version(0, None)])
        held = list[Version]()
        moments = sorted({version.since_ns for version in [*versions, *logs]})
        for moment in moments:
            log, content = _at(logs, moment), _at(versions, moment)
            held.append(Version(moment, content if log is None else log))
        return held

    def check(self, image: TreeImage, since_ns: int, until_ns: int, what: str) -> None:
        """Wrong if a path is in it as it was at no moment from `since_ns` to `until_ns`."""
        found = dict[bytes, bytes | None]()
        for path, value in image.entries():
            entry = decode_entry(value, image.read_chunk)
            if entry.type is EntryType.DIRECTORY:
                found[path] = _FOLDER
                continue
            content = bytearray(entry.size)
            for offset, length, digest in entry.pieces():
                content[offset : offset + length] = image.read_chunk(digest)[:length]
            found[path] = bytes(content)
        for path in sorted({*found, *self._versions}):
            if self.covered and path == LOG.encode():
                if path in found:
                    raise Wrong(f"{what}: {path!r} is part of a database, and a file of its own")
                continue
            held = _between(self._held(path), since_ns, until_ns)
            if found.get(path) not in held:
                raise Wrong(
                    f"{what}: {path!r} is {_told(found.get(path))}, and was {[_told(each) for each in held]} from "
                    f"{since_ns} to {until_ns}"
                )


def _told(content: bytes | None) -> str:
    return "not there" if content is None else f"{len(content)} bytes {content[:6].hex()}..{content[-4:].hex()}"


def _at(versions: list[Version], moment_ns: int) -> bytes | None:
    return next((each.content for each in reversed(versions) if each.since_ns <= moment_ns), None)


def _between(versions: list[Version], since_ns: int, until_ns: int) -> list[bytes | None]:
    """What was there at some moment of these, both included."""
    ends = [*(version.since_ns for version in versions[1:]), until_ns]
    return [
        version.content
        for version, end_ns in zip(versions, ends, strict=True)
        if version.since_ns <= until_ns and end_ns >= since_ns
    ]
