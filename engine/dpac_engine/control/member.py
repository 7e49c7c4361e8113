"""A member at work: attached to its volume or directory, tried again while that is away."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Protocol

from dpac_api.errors import Conflict, DpacError, Invalid, NotFound
from dpac_api.models import Condition, Cut, DirectorySpec, MemberSpec, MemberStatus, VolumeSpec
from dpac_engine.control import journal_failures
from dpac_engine.control.assignment import MemberAssignment
from dpac_engine.control.file_watch import FileWatch
from dpac_engine.control.group_state import GroupState, MemberMemory
from dpac_engine.control.group_view import MemberInfo
from dpac_engine.control.member_journal import MemberJournal
from dpac_engine.control.moments import nanoseconds
from dpac_engine.core.checkpoints import CutBody
from dpac_engine.core.difference import FileChange
from dpac_engine.core.image import TreeImage
from dpac_engine.core.records import Header, KeyChange, Kind, decode_key
from dpac_engine.io import journal_failure_note
from dpac_engine.io import spool as spool_module
from dpac_engine.io.files import sync_folder
from dpac_engine.io.members.tally import Tally
from dpac_engine.io.members.volume import Commits, Volume
from dpac_engine.io.members.volume_file import Signature, signature_of
from dpac_engine.io.nbd.export import Change
from dpac_engine.io.open_files import writers_below
from dpac_engine.io.spool import Spool
from dpac_engine.io.unapplied import ASIDE, Record, read_aside, set_aside

log = logging.getLogger(__name__)


class Replaced(Conflict):
    """Another file lies where a volume's was, and the journal holds changes for the one that was there."""


class Directory(Protocol):
    """A directory member (`io/members/directory.py`)."""

    @property
    def applied_lsn(self) -> int:
        """The persisted index reflects the journal before this LSN."""

    @property
    def all_applied(self) -> bool:
        """It reflects every record of this member there is."""

    def replay(self, lsn_after: int, change: KeyChange) -> None:
        """Take back a change that the index may lack; before `start`, in order."""

    async def start(self) -> None:
        """Begin to watch and capture."""

    async def stop(self) -> None:
        """Stop; the index is durable as far as the journal is."""

    async def barrier(self) -> Cut:
        """Quiesce by the blueprint and capture what was committed before the call."""

    async def settle(self) -> None:
        """A full capture that misses nothing; Temporary, naming what it misses, if it does."""

    async def rewind(self, now: TreeImage, then: TreeImage, changed: Sequence[FileChange], tally: Tally) -> None:
        """Make the folder, which holds what `now` says, hold what `then` says, and capture it."""

    def cut(self) -> Cut:
        """How exact it is in a checkpoint made now."""

    def status(self) -> MemberStatus:
        """What it does."""

    def release(self) -> None:
        """The barrier's mark is written: go on capturing."""

    @property
    def at_rest(self) -> bool:
        """Nothing was captured since the last `barrier`."""

    def conditions(self, subject: str) -> list[Condition]:
        """What a person should know."""

    def snapshot_changes(self) -> AsyncIterator[list[KeyChange]]:
        """See `seeding.TreeSource`."""


class DirectoryFactory(Protocol):
    """Makes a directory member."""

    def __call__(self, spec: DirectorySpec, journal: MemberJournal, index_folder: Path) -> Directory:
        """Not started yet."""


class Member:
    """One member of a group at work."""

    def __init__(
        self,
        name: str,
        identity: MemberAssignment,
        spec: MemberSpec,
        state: GroupState,
        folder: Path,
        spool: Spool,
        executor: Executor,
        directory: DirectoryFactory,
        pending_max: int,
        remember: Callable[[], bool],
        commits: Commits,
        note: Callable[[int, Sequence[Change]], None],
        hasten: Callable[[], None],
    ) -> None:
        self.name = name
        self.ordinal = identity.ordinal
        self.spec = spec
        self.volume: Volume | None = None
        self.directory: Directory | None = None
        self.error: DpacError | None = None
        self.holder = ""
        """The operation that works on it alone: its export answers nobody."""
        self._spool = spool
        self._executor = executor
        self._directory_factory = directory
        self._pending_max = pending_max
        self._remember = remember
        self._note = note
        self._hasten = hasten
        self._commits = commits
        self._state = state
        self._attaching = asyncio.Lock()
        self._unapplied_lsn: int | None = None
        self._captured_lsn = 0
        self._folder = folder
        self._found: list[Record] = []
        self._watch: FileWatch | None = None
        self._journal: MemberJournal | None = None
        self.changed = ""
        """What was done to it behind dpac's back; until every target has it as it is now."""
        self._tasks: list[asyncio.Task[None]] = []
        self.memory = state.members.setdefault(
            self.ordinal, MemberMemory(identity.uid, spec.kind, spec.path, spool.head_lsn)
        )

    @property
    def attached(self) -> bool:
        """Its changes are being captured."""
        return self.volume is not None or self.directory is not None

    @property
    def has_blueprint(self) -> bool:
        """It can be quiesced."""
        return isinstance(self.spec, DirectorySpec) and self.spec.blueprint is not None and self.directory is not None

    def found(self, header: Header, payload: memoryview) -> None:
        """Take back a record from the spool, before the first `attach`, in order."""
        if header.next_lsn > self.memory.aside_lsn:
            self._found.append((header, payload))

    def respecify(self, name: str, spec: MemberSpec) -> None:
        """Take a changed declaration: a volume grows; the rest is taken at the next attach."""
        self.name, self.spec = name, spec
        size_bytes = spec.size.bytes if isinstance(spec, VolumeSpec) and spec.size is not None else 0
        if self.volume is not None and size_bytes > self.volume.size_bytes:
            self.volume.grow(size_bytes)

    async def reserve(self, holder: str, *, force: bool) -> None:
        """Keep everybody else from a volume until `let_go`; see that a directory is captured as it is now.

        Conflict if another operation holds it, or it is in use and not `force`; Temporary if it cannot be captured whole.
        """
        if self.holder not in ("", holder):
            raise Conflict(f"Operation {self.holder} is at work on the member {self.name!r}. Wait until it has ended.")
        if not self.attached:
            why = self.error.message if self.error is not None else "It is being started."
            raise Conflict(f"The member {self.name!r} is not attached: {why}")
        if self.volume is not None:
            count = self.volume.client_count
            if count and not force:
                raise Conflict(
                    f"{count} client{'s are' if count > 1 else ' is'} connected to the volume {self.name!r}. Stop what uses it (unmount, "
                    "shut down), or drop the connections with --force-disconnect. Nothing was changed."
                )
            if count:
                log.warning("member %s: operation %s drops its %d client(s)", self.name, holder, count)
            self.holder = holder  # first: who is dropped connects again at once
            self.volume.drop_clients()
        if self.directory is not None:
            if not force:
                await asyncio.to_thread(self._require_unused)
            self.holder = holder
            try:
                await self.directory.settle()
            except BaseException:
                self.holder = ""
                raise

    def _require_unused(self) -> None:
        for pid, path in writers_below(Path(self.spec.path)):
            raise Conflict(
                f"Process {pid} has {path} open for writing. Stop what uses the directory, or go on regardless with --force-disconnect, which "
                "may lose or damage what it writes. Nothing was changed."
            )

    def let_go(self, holder: str) -> None:
        """Serve clients again."""
        if self.holder == holder:
            self.holder = ""

    async def attach(self) -> None:
        """Attach if it is not; a failure is kept in `error` and tried again."""
        async with self._attaching:
            if not self.attached:
                await self._attach()

    async def _attach(self) -> None:
        try:
            if isinstance(self.spec, VolumeSpec):
                await self._attach_volume(self.spec)
            else:
                await self._attach_directory(self.spec)
            self.error, self._found = None, []
        except DpacError as error:
            self._fail(error)
        except OSError as error:
            self._fail(DpacError(f"{self.spec.path}: {error.strerror}. Check the file system it lies on."))

    def _fail(self, error: DpacError) -> None:
        if self.error is None or self.error.message != error.message:
            log.warning("member %s: %s", self.name, error.message)
        self.error = error

    async def _attach_volume(self, spec: VolumeSpec) -> None:
        path = Path(spec.path)
        await asyncio.to_thread(self._learn_of_failure)
        before = signature_of(path)
        known = self.memory.signature
        if before is None and spec.size is None:
            raise NotFound(f"{path} is missing and has no `size` to create it with. Bring it back, or give `size`.")
        if before is None and self.memory.content_began:
            raise NotFound(f"{path} was protected and is missing now. Bring it back, or restore it (`dpac restore`).")
        self._require_same_file(path, before)
        volume = Volume(path, self.ordinal, self._spool, asyncio.get_running_loop(), self._executor, self._pending_max)
        try:
            if self._is_behind:
                # Now, not behind the clients' backs: if the file still cannot take it, they must not be let in.
                await asyncio.to_thread(self._catch_up, volume)
            if self.memory.void_incarnation:
                # What went past a broken journal before this process began may lie in the page cache alone, and no record will
                # tell it again: a FLUSH from here on means it too.
                await asyncio.to_thread(volume.take, ())
            for header, _ in self._found:
                if header.incarnation > self.memory.void_incarnation:
                    volume.recover(header)
            size = max(volume.size_bytes, spec.size.bytes if spec.size else 0)
            if size == 0:
                raise Invalid(f'{path} is empty and has no `size`. Give `size`, like `size="10GiB"`.')
            unknown = known is None and before is not None and self._is_other(before)
            if unknown or (known is not None and before is not None and not before.is_left_as(Signature(*known))):
                self._content_changed()  # written to while it was detached: every target seeds it anew
                self._say_changed(f"{path} was changed or replaced while it was detached")
            volume.resize(size)
        except BaseException:
            volume.close()
            raise
        volume.leaving, volume.bypassing, volume.commits = self._leaving, self._bypassing, self._commits
        self.memory.signature = None
        self.memory.content_began = True
        signature = volume.signature()
        if self.memory.attached != (signature.inode, signature.device):
            # On record before the first acknowledged change: after a kill no other file may get it.
            self.memory.attached = (signature.inode, signature.device)
            self._remember()
        self._watch = FileWatch(path, volume)
        volume.note = partial(self._note, self.ordinal)
        self.volume = volume
        self._tasks = [asyncio.create_task(volume.write_behind(), name=f"write-behind-{self.name}")]

    def _learn_of_failure(self) -> None:
        if journal_failures.take_up(self.memory, self._spool.durable_lsn) and self._remember():
            journal_failures.forget(self.memory)

    def _is_other(self, found: Signature) -> bool:
        known = self.memory.attached
        return known is not None and found.is_other_than(Signature(0, 0, *known))

    def _require_same_file(self, path: Path, found: Signature | None) -> None:
        """Replaced if acknowledged changes would go to another file than their clients wrote to."""
        lacks = self._is_behind or any(self._counts(record) for record in self._found)
        if found is not None and lacks and self._is_other(found):
            raise Replaced(
                f"Another file lies at {path} than the one that was attached, and acknowledged changes wait for that one. Put the "
                "right file back. If this one is meant, remove the member, apply, and declare it again: those changes are "
                "dropped then."
            )

    # ------------------------------------------------------------------ what others do to the file

    async def look_at_file(self) -> None:
        """See whether the volume's path still leads to the file that is written to, and whether somebody else writes it."""
        watch, volume = self._watch, self.volume
        if watch is None or volume is None:
            return
        try:
            done = await watch.look()
        except OSError:
            return  # it was detached meanwhile, or its file system does not answer: what reads or writes it says so
        if done and self.volume is volume:
            volume.restore_size()
            self._content_changed()
            self._say_changed(f"{self.spec.path} was changed by another program while clients use it: {done}")

    def _say_changed(self, message: str) -> None:
        self.changed = message
        log.warning("member %s: %s", self.name, message)

    # ------------------------------------------------------------------ what the file lacks

    @property
    def _aside(self) -> Path:
        return self._folder / ASIDE

    @property
    def _is_behind(self) -> bool:
        """An earlier attachment left changes that the file does not have."""
        return self._unapplied_lsn is not None or self._aside.exists()

    def _catch_up(self, volume: Volume) -> None:
        """Bring what was set aside, and what an attachment that failed left in the spool, to the file. Blocks."""
        volume.take(record for record in read_aside(self._aside) if self._counts(record))
        if self._unapplied_lsn is not None:
            volume.take(self._left_in_spool(self._unapplied_lsn))
        if self._aside.exists():
            os.unlink(self._aside)
            sync_folder(self._aside.parent)
        self._unapplied_lsn = None

    def _left_in_spool(self, from_lsn: int) -> Iterator[Record]:
        tag = self._spool.identity.shard_tag
        for record in spool_module.scan(self._spool.folder, from_lsn, tag, 0):
            if self._counts(record) and record[0].next_lsn > self.memory.aside_lsn:
                yield record

    def _counts(self, record: Record) -> bool:
        return record[0].member == self.ordinal and record[0].incarnation > self.memory.void_incarnation

    async def let_spool_go(self) -> None:
        """Set aside what the spool holds for this volume, which cannot take it now: the others need the room. Raises OSError."""
        if not self.pins:
            return
        # What a loss of power takes off the journal's end leaves its LSNs to other records: those are not set aside.
        durable_lsn, from_lsn = self._spool.durable_lsn, self.applied_lsn

        def store() -> None:
            before = [record for record in read_aside(self._aside) if self._counts(record)]
            found = [record for record in self._found if self._counts(record)]
            set_aside(self._aside, [*before, *(found or self._left_in_spool(from_lsn))])

        await asyncio.to_thread(store)
        self.memory.aside_lsn, self._unapplied_lsn, self._found = durable_lsn, None, []
        log.warning("member %s: changes that its file lacks were set aside in %s", self.name, self._aside)

    @property
    def pins(self) -> bool:
        """It is a volume that is away, and the spool holds changes for it."""
        return not self.attached and isinstance(self.spec, VolumeSpec) and self.applied_lsn < self._spool.head_lsn

    async def leave_journal(self) -> None:
        """Before the journal begins anew: nothing of this member may depend on the old one. Raises OSError."""
        if self.directory is not None:
            await self.detach()
        if not isinstance(self.spec, VolumeSpec):
            self._found, self._unapplied_lsn = [], None
        await self.let_spool_go()

    def journalled_again(self) -> None:
        """The journal works again: what was written meanwhile is in no log."""
        if self.volume is not None and self.volume.bypass:
            self.volume.journalled_again()
            self._content_changed()

    async def give_up_failed(self) -> None:
        """Let go of a volume whose file failed: it is attached again once the file takes what it lacks."""
        if self.volume is not None and self.volume.error is not None:
            error = self.volume.error
            await self.detach()
            self._fail(
                DpacError(
                    f"{self.spec.path} failed: {error.strerror or error}. Its clients were disconnected; what they wrote is kept. "
                    "Look at the disk it lies on; it is attached again by itself."
                )
            )

    def _content_changed(self) -> None:
        self.memory.content += 1
        # Not the head: a loss of power may take the journal back to here, and what follows then is after the change.
        self.memory.content_lsns[self.memory.content] = self._spool.durable_lsn

    def _leaving(self) -> None:
        # On record before the file gets ahead of what is durable in the journal: after a loss of power in between, targets
        # need a new seed too.
        self._content_changed()
        self._remember()

    def _bypassing(self) -> None:
        # From here on nothing of the journal may be replayed: the file goes on without it. That must be on record first; where
        # the journal's disk takes nothing, beside the volume. OSError if it can be put on record nowhere.
        self.memory.void_incarnation = self._state.incarnation
        if self._remember():
            return
        try:
            journal_failure_note.leave(Path(self.spec.path), self.memory.uid, self._state.incarnation)
        except OSError as error:
            why = f"its journal failed, which can be noted neither with the group's state nor beside it ({error.strerror})"
            raise OSError(errno.EROFS, why) from error

    async def _attach_directory(self, spec: DirectorySpec) -> None:
        self._journal = MemberJournal(self._spool, self.ordinal, self._hasten)
        directory = self._directory_factory(spec, self._journal, self._folder)
        lacking = self._unapplied_lsn
        left = [] if lacking is None else await asyncio.to_thread(lambda: list(self._left_in_spool(lacking)))
        for header, payload in self._found or left:
            if header.kind in (Kind.PUT, Kind.DELETE) and header.next_lsn > directory.applied_lsn:
                keyspace, key, start = decode_key(payload)
                value = None if header.kind == Kind.DELETE else bytes(payload[start:])
                directory.replay(header.next_lsn, KeyChange(keyspace, key, value))
        await directory.start()
        self.directory, self._unapplied_lsn = directory, None

    async def detach(self) -> None:
        """Drain it: every change is in the file or the index when this returns."""
        async with self._attaching:
            await self._detach()

    async def _detach(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self.volume is not None:
            volume, self.volume, self._watch = self.volume, None, None
            self._unapplied_lsn = None if volume.bypass else min(volume.synced_lsn, volume.low_lsn)
            self.memory.signature = await volume.stop()
            if self.memory.signature is not None:
                self._unapplied_lsn = None
        if self.directory is not None:
            directory, self.directory = self.directory, None
            await directory.stop()
            # An index that could not be written lacks what the journal tells: whoever attaches next replays that.
            self._unapplied_lsn = None if directory.all_applied else directory.applied_lsn

    @property
    def applied_lsn(self) -> int:
        """The spool before this LSN is not needed for the member any more."""
        if self.volume is not None:
            return self._spool.head_lsn if self.volume.bypass else self.volume.synced_lsn
        if self.directory is not None:
            return self._spool.head_lsn if self.directory.all_applied else self.directory.applied_lsn
        if self._unapplied_lsn is not None:
            return self._unapplied_lsn
        if self._found:
            return self._found[0][0].lsn
        return self._spool.head_lsn

    async def sync(self) -> None:
        """Make what is applied durable."""
        if self.volume is not None:
            await self.volume.sync()

    def press(self, hurry: bool, hold: bool) -> None:
        """The spool fills: bring changes to the file at once; hold clients back."""
        if self.volume is not None:
            self.volume.backpressure = hold
            if hurry:
                self.volume.hurry()
            self.volume.relieve()

    def write_through(self) -> None:
        """The journal failed: go on without it."""
        if self.volume is not None:
            self.volume.write_through_from_now()

    # ------------------------------------------------------------------ checkpoints and legs

    def hold(self, on: bool) -> None:
        """Let no change into the journal until told otherwise."""
        if self.volume is not None:
            self.volume.hold(on)
        if self._journal is not None:
            self._journal.hold(on)

    @property
    def holds(self) -> bool:
        """It lets none in. One that was attached since it was told was never told."""
        return (self.volume is None or self.volume.held) and (self.directory is None or self._journal_held)

    @property
    def _journal_held(self) -> bool:
        return self._journal is not None and self._journal.held

    def cut(self) -> CutBody | None:
        """How exact it is in a checkpoint made now; None if it is not in it."""
        if self.volume is not None:
            return CutBody("exact")
        if self.directory is not None:
            return _cut_body(self.directory.cut())
        return None

    async def barrier(self) -> CutBody:
        """Quiesce and capture it."""
        assert self.directory is not None
        return _cut_body(await self.directory.barrier())

    @property
    def at_rest(self) -> bool:
        """What `barrier` captured is still the newest that the journal has of it."""
        return self.directory is not None and self.directory.at_rest

    def release(self) -> None:
        """The mark after a barrier is written."""
        if self.directory is not None:
            self.directory.release()

    def conditions(self) -> list[Condition]:
        """What a person should know of an attached member."""
        return self.directory.conditions(f"member/{self.name}") if self.directory is not None else []

    @property
    def whereabouts(self) -> str:
        """`missing` or `replaced` if the path of an attached volume does not lead to its file any more."""
        return self._watch.whereabouts if self._watch is not None else ""

    @property
    def set_aside_bytes(self) -> int:
        """Acknowledged changes that wait in a file of their own for the volume to come back."""
        return self._aside.stat().st_size if self._aside.exists() else 0

    def info(self) -> MemberInfo:
        """What legs need of it."""
        memory = self.memory
        directory = self.directory
        if directory is not None and memory.seeded_lsn is None and directory.status().seeded:
            # Its first full capture lies before this; on record once a loss of power cannot give these LSNs to others.
            self._captured_lsn = self._captured_lsn or self._spool.head_lsn
            if self._spool.durable_lsn >= self._captured_lsn:
                memory.seeded_lsn = self._captured_lsn
        return MemberInfo(
            memory.uid,
            memory.kind,
            self.name,
            memory.content,
            memory.start_lsn if memory.kind == "directory" else None,
            memory.seeded_lsn,
            self.volume if self.volume is not None and not self.volume.bypass else directory,
        )

    def status(self, seeded: bool) -> MemberStatus:
        """What people see."""
        if self.volume is not None:
            failed = self.volume.error is not None
            return MemberStatus(
                kind="volume",
                state="Failed" if failed else "Attached",
                seeded=seeded,
                size_bytes=self.volume.size_bytes,
                unapplied_bytes=self.volume.pending_bytes,
                message=str(self.volume.error) if failed else "",
            )
        if self.directory is not None:
            return self.directory.status().model_copy(update={"seeded": seeded})
        if self.error is None:
            return MemberStatus(kind=self.spec.kind, state="Starting", seeded=seeded)
        missing = isinstance(self.error, NotFound)
        return MemberStatus(
            kind=self.spec.kind, state="Missing" if missing else "Failed", seeded=seeded, message=self.error.message
        )


def _cut_body(cut: Cut) -> CutBody:
    as_of = nanoseconds(cut.as_of) if cut.as_of else 0
    return CutBody(cut.kind, as_of, int((cut.skew_seconds or 0) * 1e9))
