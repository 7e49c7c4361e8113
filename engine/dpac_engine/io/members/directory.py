"""A directory member: every stable version of every file in a tree, journalled.

Changes are hinted by inotify and captured within about a second; a full scan, at start and every few seconds, is the truth.
docs/directories.md says what is captured and how exact it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from dpac_api.errors import DpacError, Temporary
from dpac_api.models import Condition, Cut, MemberStatus
from dpac_engine.core.difference import FileChange
from dpac_engine.core.entries import EntryType, encode_entry
from dpac_engine.core.image import TreeImage
from dpac_engine.core.ports import Clock, JournalWriter
from dpac_engine.core.records import KeyChange
from dpac_engine.io.blueprints.blueprint import Blueprint
from dpac_engine.io.members import seed
from dpac_engine.io.members.capture import Capture, RootGone, Seeding
from dpac_engine.io.members.chunks import Abandoned
from dpac_engine.io.members.tally import Tally
from dpac_engine.io.members.tree_index import Root, TreeIndex
from dpac_engine.io.members.tree_rewind import rewind_tree
from dpac_engine.io.members.watch import TreeWatch

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_NAMED_MAX = 5
_RETRY_SECONDS_MAX = 60.0


class ScanSettings(NamedTuple):
    """How a tree is looked at."""

    interval_seconds: float = 5.0
    """From one full scan to the next, at least: `as_of` of the checkpoints in between is at most that old."""
    scan_share_max: float = 0.03
    """Of one core, spent on full scans: a tree that takes 2 s to scan is scanned every minute."""
    gather_seconds: float = 0.3
    """Hints are gathered so long before they are captured."""
    rest_factor: float = 4.0
    """After a scan, the next one rests this many times as long as it took, and so do captures of hints: 4 keeps
    each of the two below a fifth of a core."""
    missing_seconds: float = 1.0
    """How often a missing folder is looked for, and a failed capture tried again."""
    hold_seconds_max: float = 10.0
    """After a barrier, nothing is captured until `release`, but at most so long."""


State = Literal["Starting", "Attached", "Missing", "Detached", "Failed"]


class DirectoryMember:
    """Captures `path` into `journal`. `folder` is its own on this host: index and scratch space.

    Order of calls: `replay` for every record after `applied_lsn`, then `start`. All on the event loop.
    """

    def __init__(
        self,
        path: Path,
        journal: JournalWriter,
        clock: Clock,
        folder: Path,
        blueprint: Blueprint | None = None,
        settings: ScanSettings = ScanSettings(),  # noqa: B008 - immutable
    ) -> None:
        self.path = path
        self.settings = settings
        self._clock = clock
        self._blueprint = blueprint
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dpac-directory")
        self._index = TreeIndex(folder / "index.sqlite")
        self._index.open()
        self._capture = Capture(path, journal, clock, self._index, blueprint, folder / "scratch", self._executor)
        self._capture.stale = {path: row.entry.as_of for path, row in self._index.rows.items() if row.entry.as_of}
        self._lock = asyncio.Lock()
        self._released = asyncio.Event()
        self._released.set()
        self._release_timer: asyncio.TimerHandle | None = None
        self._hints: set[bytes] = set()
        self._hinted = asyncio.Event()
        self._scan_all = False
        self._retries: dict[bytes, tuple[float, int]] = {}
        self._watch: TreeWatch | None = None
        self._watched_root: Root | None = None
        self._watch_problem = ""
        self._state: State = "Starting"
        self._state_since_ns = clock.now_ns()
        self._message = ""
        self._skew_seconds: float | None = None
        self._rest_until = 0.0
        self._scan_rest_until = 0.0
        self._scan_due = 0.0
        self._loop_task: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------- life

    @property
    def applied_lsn(self) -> int:
        """The persisted index reflects every record of this member before this LSN."""
        return self._index.applied_lsn

    @property
    def all_applied(self) -> bool:
        """It reflects every record of this member there is: the journal need keep none for its sake."""
        return self._index.journal_lsn == self._index.applied_lsn

    def replay(self, lsn_after: int, change: KeyChange) -> None:
        """Take a record that the journal has after `applied_lsn`, ending at `lsn_after`; in order, before `start`."""
        if lsn_after > self._index.applied_lsn:
            self._index.replay(lsn_after, change)

    async def reset(self, lsn: int | None = None) -> None:
        """Forget what was captured: the next capture puts everything again.

        Called after a RESET record, which ends at `lsn`, was written, and for each RESET met during replay.
        """
        async with self._lock:
            await self._capture.forget(self._index.journal_lsn if lsn is None else lsn)
            self._scan_all = True
            self._hinted.set()
            if self._state == "Attached":
                self._enter("Starting", "")

    async def start(self) -> None:
        """Begin to capture; returns at once. The first full capture is under way then."""
        self._index.replayed()
        self._loop_task = asyncio.create_task(self._run(), name=f"directory {self.path}")

    async def stop(self) -> None:
        """End; a capture under way is abandoned, unless it is about to end. What was captured is in journal and index."""
        self._capture.stopping.set()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self.release()
        self._stop_watching()
        async with self._lock:
            self._executor.shutdown(wait=True)
            self._index.close()
        self._enter("Detached", "")

    # ---------------------------------------------------------------- captures

    async def capture(self, full: bool = False) -> Cut:
        """Capture now: what is hinted, or with `full` all there is; what `cut` says afterwards.

        Temporary if the folder is missing.
        """
        await self._whole(self._captured(None if full else self._take_hints()))
        return self.cut()

    async def barrier(self) -> Cut:
        """A full capture that holds everything the application committed before the call.

        Nothing more is captured until `release` (or ten seconds), so that the mark that follows is of this cut. It is
        a `barrier` if the blueprint copied every file that changes; `observed` if any other file changed meanwhile, is
        not captured as it is now, or if there is no blueprint.
        """
        return await self._whole(self._barrier())

    async def settle(self) -> None:
        """A full capture that misses nothing; Temporary, naming what it misses, if it does."""
        await self.capture(full=True)
        found = self._capture.findings
        if self._capture.stale or found.unreadable or found.unstable:
            why = " ".join(self._problems().values())
            raise Temporary(
                f"{self.path} cannot be captured as it is now. {why} Stop what writes there, then try again."
            )

    async def rewind(self, now: TreeImage, then: TreeImage, changed: Sequence[FileChange], tally: Tally) -> None:
        """Make the folder, which holds what `now` says, hold what `then` says (`tree_rewind`).

        Nothing is captured meanwhile, and everything before this returns. Ended by being cancelled.
        """
        stopping = threading.Event()
        async with self._lock:
            work = asyncio.ensure_future(
                self._capture.in_thread(
                    lambda: rewind_tree(self.path, now, then, changed, self._blueprint, tally, stopping)
                )
            )
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                stopping.set()
                await asyncio.gather(work, return_exceptions=True)
                raise
        await self.capture(full=True)

    def release(self) -> None:
        """The barrier's mark is written: go on capturing."""
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        self._released.set()

    @property
    def at_rest(self) -> bool:
        """Nothing was captured since the last `barrier`: neither was it released, nor did its bound pass."""
        return not self._released.is_set()

    def cut(self) -> Cut:
        """How exact this member is in a mark that is written now."""
        return Cut(kind="observed", as_of=_moment(self._as_of_ns()), skew_seconds=self._skew_seconds)

    def current_entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of every entry the journal holds, in order of their keys."""
        for path, row in sorted(self._index.rows.items()):
            yield path, encode_entry(row.entry).value

    async def snapshot_changes(self, read_chunk: seed.ReadChunk | None = None) -> AsyncIterator[list[KeyChange]]:
        """Everything the journal holds of this member, as puts: chunks, then all entries of one moment.

        For a target that joins later: it takes these, then the journal from where it ended when this was called.
        Every chunk the entries list is among these, or in the journal from there on. Chunks are read from the files
        (and what changed is captured); `read_chunk` is asked for those of a version that is in no file any more.
        Temporary, naming the file, if one cannot be had.
        """

        async def recapture(paths: list[bytes], seeding: Seeding) -> None:
            await self._whole(self._captured(paths, seeding))

        async for batch in seed.everything(self._capture, self.path, recapture, self._lock, read_chunk):
            yield batch

    # ---------------------------------------------------------------- status

    def status(self) -> MemberStatus:
        """What the member does now. `seeded`: a complete capture is in the journal."""
        return MemberStatus(
            kind="directory",
            state=self._state,
            seeded=self._index.scanned_ns is not None,
            size_bytes=self._index.size_bytes,
            as_of=_moment(self._as_of_ns()),
            message=self._message or " ".join(self._problems().values()),
        )

    def conditions(self, subject: str) -> list[Condition]:
        """What a person should know, about `subject` (`member/NAME`)."""
        since = _moment(self._state_since_ns) or datetime.now(UTC)
        found: list[Condition] = []
        if self._state in ("Missing", "Failed"):
            found.append(
                Condition(
                    type=f"Member{self._state}", subject=subject, message=self._message, since=since, severity="error"
                )
            )
        found += [
            Condition(type=kind, subject=subject, message=message, since=since)
            for kind, message in self._problems().items()
        ]
        return found

    def findings(self) -> dict[str, str]:
        """Path -> why it is not in the journal as it is now."""
        found = self._capture.findings
        every = {**dict(found.plain), **dict(found.unreadable), **dict(found.unstable)}
        return {_readable(path): problem for path, problem in sorted(every.items())}

    def _problems(self) -> dict[str, str]:
        found = self._capture.findings
        unstable = {path: "" for path in list(found.unstable) if path not in self._index.rows}
        older = {path: "" for path in list(found.unstable) if path in self._index.rows}
        problems = {
            "FilesUnreadable": _summary("cannot be read", dict(found.unreadable), "Give the backend's user access."),
            "FilesNotCaptured": _summary(
                "not captured yet: it keeps changing", unstable, "Let it rest, or use a blueprint."
            ),
            "FilesBehind": _summary("kept at its last stable version: it keeps changing", older, "Use a blueprint."),
            "FilesNotCovered": _summary("not covered by the blueprint", dict(found.plain), ""),
            "WatchUnavailable": self._watch_problem,
        }
        return {kind: message for kind, message in problems.items() if message}

    def _as_of_ns(self) -> int | None:
        """The newest moment all of which is in the journal: the newest scan's start, or older for a file behind."""
        moments = [self._index.scanned_ns, *list(self._capture.stale.values())]
        return None if None in moments else min(moment for moment in moments if moment is not None)

    def _enter(self, state: State, message: str) -> None:
        if (state, message) != (self._state, self._message):
            self._state, self._message, self._state_since_ns = state, message, self._clock.now_ns()
            _log.info("directory %s: %s %s", self.path, state, message)

    # ---------------------------------------------------------------- at work

    async def _run(self) -> None:
        await self._attempt(None)
        await self._follow_watch()
        while True:
            await self._wait()
            if self._now() >= self._full_due():
                self._take_hints()
                await self._attempt(None)
                await self._follow_watch()
            elif self._now() >= self._hints_due() and (hints := self._take_hints()):
                await self._attempt(hints)

    async def _wait(self) -> None:
        """Until a capture is due."""
        self._hinted.clear()
        due = min(self._full_due(), self._hints_due())
        try:
            await asyncio.wait_for(self._hinted.wait(), max(0.0, due - self._now()))
        except TimeoutError:
            return

    def _full_due(self) -> float:
        """When the next full capture begins, by the monotonic clock."""
        return self._scan_rest_until if self._scan_all else self._scan_due

    def _hints_due(self) -> float:
        """When the next capture of hints, or of an unstable file, begins."""
        if self._state == "Missing":
            return math.inf
        if self._hints:
            return self._rest_until
        return min((due for due, _ in self._retries.values()), default=math.inf)

    async def _attempt(self, hints: set[bytes] | None) -> None:
        """A capture by the loop itself: failures become state, never the loop's end."""
        try:
            await self._whole(self._captured(hints))
        except (DpacError, OSError) as error:
            if self._state != "Missing":
                self._enter("Failed", f"The last capture failed: {error}")
            self._try_again(hints)
        except Exception:
            _log.exception("directory %s: a capture failed", self.path)
            self._enter("Failed", "The last capture failed by an error in dpac itself; the worker's log has it.")
            self._try_again(hints)

    def _try_again(self, hints: set[bytes] | None) -> None:
        again = self._now() + self.settings.missing_seconds
        self._rest_until = max(self._rest_until, again)
        self._scan_rest_until = max(self._scan_rest_until, again)
        self._scan_all = self._scan_all or hints is None
        self._hints |= hints or set()
        self._hinted.set()

    async def _whole(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run to its end even if the caller is cancelled: a capture is never left half applied."""
        task = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._left_alone)
            raise

    def _left_alone(self, task: asyncio.Future[Any]) -> None:
        """A capture that nobody waits for any more has ended; being abandoned is no news."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, DpacError | OSError):
            _log.error("directory %s: a capture failed", self.path, exc_info=error)

    async def _captured(self, hints: Iterable[bytes] | None, seeding: Seeding | None = None) -> None:
        async with self._lock:
            await self._released.wait()
            await self._capture_locked(hints, seeding)

    async def _capture_locked(self, hints: Iterable[bytes] | None, seeding: Seeding | None = None) -> None:
        began = self._now()
        if hints is None:
            self._scan_all = False
        try:
            await self._capture.run(hints, seeding, force=seeding is not None)
        except RootGone as error:
            self._enter("Missing", f"{error}. What was captured is kept.")
            self._stop_watching()
            self._scan_all = True
            raise Temporary(f"{error}. Bring it back; until then the last captured state stands.") from error
        except Abandoned as error:
            raise Temporary(f"{self.path} is being detached. Try again once it is attached.") from error
        finally:
            took = self._now() - began
            rested = self._now() + self.settings.rest_factor * took
            if hints is None:
                # A long scan must not hold up hinted changes: they rest by what they cost themselves.
                self._scan_rest_until = rested
            else:
                self._rest_until = rested
        if hints is None:
            self._skew_seconds = took
            idle = max(self.settings.interval_seconds, took / self.settings.scan_share_max)
            self._scan_due = max(self._now() + idle, self._scan_rest_until)
        if self._index.scanned_ns is not None:
            self._enter("Attached", "")
        self._plan_retries()

    async def _barrier(self) -> Cut:
        async with self._lock:
            await self._released.wait()
            await self._capture_locked(None)
            exact = self._blueprint is not None and not self._capture.stale and not self._capture.findings.unreadable
            exact = exact and not await self._uncovered_changes()
            self._released.clear()
            self._release_timer = asyncio.get_running_loop().call_later(self.settings.hold_seconds_max, self.release)
            return Cut(kind="barrier") if exact else self.cut()

    async def _uncovered_changes(self) -> bool:
        """Whether anything but folders and the blueprint's own files changed since it was captured.

        If nothing did, then what was captured is the tree as it was at the end of the capture.
        """
        found = await self._capture.difference()
        rows = self._index.rows
        for path in [*found.changed, *found.vanished]:
            row = rows.get(path)
            if row is None or not (row.covered or row.entry.type is EntryType.DIRECTORY):
                return True
        return False

    # ---------------------------------------------------------------- hints

    def _now(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def _take_hints(self) -> set[bytes]:
        """Hints and due retries, except for unstable files that were tried a moment ago."""
        now = self._now()
        hints, self._hints = self._hints, set()
        hints = {path for path in hints if path not in self._retries}
        return hints | {path for path, (due, _) in self._retries.items() if due <= now}

    def _plan_retries(self) -> None:
        """An unstable file is tried again after 1, 2, 4 ... 60 seconds."""
        unstable = list(self._capture.findings.unstable)
        self._retries = {path: self._retries[path] for path in unstable if path in self._retries}
        now = self._now()
        for path in unstable:
            due, failures = self._retries.get(path, (0.0, 0))
            if due <= now:
                self._retries[path] = (now + min(2.0**failures, _RETRY_SECONDS_MAX), failures + 1)

    def _hint(self, paths: set[bytes] | None) -> None:
        if paths is None:
            self._stop_watching()
            self._scan_all = True
        else:
            self._hints |= paths
        self._hinted.set()

    async def _follow_watch(self) -> None:
        """Make the watch fit the tree that the last full capture found."""
        root = self._index.root
        if self._state != "Attached" or root is None:
            return
        folders = await self._capture.in_thread(self._folders_to_watch)
        if self._watch is not None and (self._watch.folders, self._watched_root) == (folders, root):
            return
        self._stop_watching()
        loop = asyncio.get_running_loop()

        def hinted(paths: set[bytes] | None) -> None:
            # A watch that was replaced may have a last word; the loop may be gone at the very end.
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: self._hint(paths) if self._watch is watch else None)

        watch = TreeWatch(self.path, folders, int(self.settings.gather_seconds * 1000), hinted)
        try:
            await self._capture.in_thread(watch.start)
        except OSError as error:
            self._watch_problem = (
                f"Changes are found by scans only, every {self.settings.interval_seconds:g} s ({error}). "
                "Raise fs.inotify.max_user_watches."
            )
            return
        self._watch, self._watched_root, self._watch_problem = watch, root, ""
        # What changed between the scan and the watch's beginning is hinted by nobody.
        self._scan_all = True

    def _folders_to_watch(self) -> list[bytes] | None:
        """None: the tree as a whole. Its folders, one by one, if a symlink in it leads to a folder."""
        root = os.fsencode(self.path)
        rows = self._index.rows
        links = (path for path, row in rows.items() if row.entry.type is EntryType.SYMLINK)
        if not any(os.path.isdir(os.path.join(root, path)) for path in links):
            return None
        return sorted(path for path, row in rows.items() if row.entry.type is EntryType.DIRECTORY)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None


def _moment(ns: int | None) -> datetime | None:
    return None if ns is None else datetime.fromtimestamp(ns / 1e9, UTC)


def _readable(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _summary(problem: str, paths: dict[bytes, str], advice: str) -> str:
    """`3 files cannot be read: a (permission denied), b, c. Give ...`"""
    if not paths:
        return ""
    named = [f"{_readable(path)} ({reason})" if reason else _readable(path) for path, reason in sorted(paths.items())]
    more = f" and {len(named) - _NAMED_MAX} more" if len(named) > _NAMED_MAX else ""
    return f"{len(named)} of its paths {problem}: {', '.join(named[:_NAMED_MAX])}{more}. {advice}".strip()
