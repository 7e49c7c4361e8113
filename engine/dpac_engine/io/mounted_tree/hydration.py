"""Hydration of a mounted directory: what its checkpoint holds is copied to the host behind its clients, in the order in which it
is stored, so that the mount needs no target any more."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from dpac_api.errors import DpacError
from dpac_engine.core.image import TreeImage
from dpac_engine.io.hydration import FREE_FRACTION, REST_FACTOR, RETRY_SECONDS, SYNC_BYTES
from dpac_engine.io.members.tree_restore import verified
from dpac_engine.io.mounted_tree.local_copy import Behind, LocalCopy
from dpac_engine.io.mounted_tree.lower import Lower

log = logging.getLogger(__name__)

PIECE_BYTES = 2**20
STOP_SECONDS_MAX = 5.0


class TreeHydration:
    """One mount's. `start` it once; `stop` returns when it writes no more."""

    def __init__(
        self,
        name: str,
        image: TreeImage,
        copy: LocalCopy,
        lower: Lower,
        turn: AbstractContextManager[object],
        changed: Callable[[], None],
    ) -> None:
        """`turn` is held while the target is read: mounts of one target come one after the other. `changed`: tell of it."""
        self.name = name
        self.problem = ""
        """Why it does not go on; it tries again."""
        self._copy, self._lower, self._turn, self._changed = copy, lower, turn, changed
        lower.stored = behind = Behind(copy, image)
        self._done_bytes, self._total_bytes = 0, max(1, image.stored_bytes())
        self._stopping = threading.Event()
        # The image goes with the thread: once it is copied nobody needs it.
        self._thread = threading.Thread(target=self._run, args=(image, behind), name=f"hydrate {name}", daemon=True)

    @property
    def fraction(self) -> float:
        """How much is on the host, 0 to 1."""
        return 1.0 if self._copy.whole else min(self._done_bytes / self._total_bytes, 0.999)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End it where it is, if that is possible: a target that hangs keeps it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS_MAX)

    def _run(self, image: TreeImage, behind: Behind) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                if self._copied(image, behind):
                    self._lower.stored = self._copy
                    log.info("%s is copied: it needs its target no more", self.name)
                    self._tell("")
                return
            except (DpacError, OSError) as error:
                message = error.message if isinstance(error, DpacError) else error.strerror or str(error)
                if not self.problem:
                    log.warning("%s is not copied on: %s; it is tried again", self.name, message)
                self._tell(message)
                self._stopping.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1
            except Exception:
                log.exception("%s is not copied on", self.name)
                self._tell("An unforeseen error; the log of the worker has it.")
                return

    def _tell(self, problem: str) -> None:
        self.problem = problem
        self._changed()

    def _copied(self, image: TreeImage, behind: Behind) -> bool:
        """Copy what is not here yet; False if it was stopped."""
        held = self._copy.held_chunks()
        self._done_bytes = sum(held.values())
        unsynced = 0
        for piece in _pieces(image, held):
            unsynced += self._take(image, behind, piece)
            if unsynced >= SYNC_BYTES:
                self._copy.sync()
                unsynced = 0
            self._tell("")
            if self._stopping.is_set():
                return False
        if not self._copy.has_entries():
            with self._turn:
                self._copy.keep_entries(list(image.entries()))
        self._copy.finish()
        return True

    def _take(self, image: TreeImage, behind: Behind, piece: list[bytes]) -> int:
        """Copy chunks; returns their bytes."""
        disk = os.statvfs(self._copy.folder)
        if disk.f_bavail * disk.f_frsize - PIECE_BYTES < FREE_FRACTION * disk.f_blocks * disk.f_frsize:
            free = f"{self._copy.folder} has less than {FREE_FRACTION:.0%} of its disk free: make room, or unmount"
            raise OSError(28, free)
        reads, taken = behind.reads, 0
        with self._turn:
            began = time.monotonic()
            for digest in piece:
                chunk = verified(image.read_chunk(digest), digest)
                self._copy.keep_chunk(digest, chunk)
                taken += len(chunk)
        self._done_bytes += taken
        if behind.reads != reads:  # clients read too: they come first
            self._stopping.wait(REST_FACTOR * (time.monotonic() - began))
        return taken


def _pieces(image: TreeImage, held: dict[bytes, int]) -> list[list[bytes]]:
    """Hashes of the chunks that are wanted, as they are stored, about `PIECE_BYTES` at a time."""
    pieces: list[list[bytes]] = []
    room = 0
    for digest, length in image.chunks():
        if digest in held:
            continue
        if room <= 0:
            pieces.append([])
            room = PIECE_BYTES
        pieces[-1].append(digest)
        room -= length
    return pieces
