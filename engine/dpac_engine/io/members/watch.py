"""Watching a tree by inotify: hints of what to look at next. Never the truth; scans are.

The watching library follows symlinks to folders when it walks a tree, and gives up on a name that is not UTF-8. So a
tree with such links is watched folder by folder, and a lost watch is a hint to scan everything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from dpac_engine.core.entries import ROOT

_STEP_MS = 100
_STOP_LOOK_MS = 2_000


class TreeWatch:
    """Watches `root` until `stop`. `hinted` is called in the watching thread: with relative paths, or with None when
    the watch is lost: everything may have changed, and a new watch has to be made."""

    def __init__(
        self, root: Path, folders: Sequence[bytes] | None, gather_ms: int, hinted: Callable[[set[bytes] | None], None]
    ) -> None:
        self.folders = folders
        """None: the whole tree; else exactly these folders, relative, in which nothing is followed."""
        self._root = os.fsencode(os.path.realpath(root))
        self._gather_ms = gather_ms
        self._hinted = hinted
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; what changes after this returns is hinted. Blocks while the tree is walked. OSError where the
        system has no watches left, or the root is gone."""
        watched = self._watched()
        try:
            notify = RustNotify(watched, False, False, 0, self.folders is None, True)
        except WatchfilesRustInternalError as error:
            raise OSError(f"the tree cannot be watched: {error}") from error
        self._thread = threading.Thread(target=self._run, args=(notify,), name="dpac-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; returns at once, the thread follows within a step."""
        self._stopped.set()

    def _watched(self) -> list[str]:
        if self.folders is None:
            return [os.fsdecode(self._root)]
        paths = [self._root if path == ROOT else os.path.join(self._root, path) for path in self.folders]
        found: list[str] = []
        for path in paths:
            try:
                text = path.decode()
            except UnicodeDecodeError:
                continue  # cannot be named to the library; scans cover it
            if os.path.isdir(text) and not os.path.islink(text):
                found.append(text)
        return found

    def _run(self, notify: RustNotify) -> None:
        try:
            while not self._stopped.is_set():
                changes = notify.watch(self._gather_ms, _STEP_MS, _STOP_LOOK_MS, self._stopped)
                if isinstance(changes, set) and not self._stopped.is_set():
                    self._hinted({self._relative(path) for _, path in changes})
        except (WatchfilesRustInternalError, OSError):
            if not self._stopped.is_set():
                self._hinted(None)
        finally:
            notify.close()

    def _relative(self, path: str) -> bytes:
        found = os.path.relpath(os.fsencode(path), self._root)
        return ROOT if found.startswith(b"..") else found
