"""One group's repository at one target: read by recovery, written by one shipper (docs/journal-format.md)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import blake3
import msgspec

from dpac_api.errors import Conflict, Corruption, Invalid, NotFound, Unrecoverable, Unsupported
from dpac_engine.core import checkpoints, manifest
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image, VolumeImage
from dpac_engine.core.manifest import Hold, Manifest, MemberState, RepositoryState, SegmentRef
from dpac_engine.core.ports import Clock, ObjectLocks, Store, TargetMissing
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import (
    BLOCK_BYTES,
    BULK_BLOCK_BYTES,
    SUPPORTED_FEATURES,
    DataKeys,
    Domain,
    Seal,
    SegmentHeader,
    SegmentKind,
    SegmentWriter,
)
from dpac_engine.core.tail import TailHeader
from dpac_engine.io import escrow
from dpac_engine.io.stored_segment import BlockCache, StoredSegment
from dpac_engine.io.tails import StoredEnd, TailReader, TailSegment

OPEN_THREADS = 16
TAIL_TRIES = 8
"""How often tails are read again while manifests come or they change under the reader."""


class RepositoryInfo(msgspec.Struct, frozen=True):
    """`repository.json`: what lies here."""

    format: int
    features: int
    repository_uid: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    group_uid: str


class SpecObject(msgspec.Struct, frozen=True):
    """`spec/<number>`: the group as it was declared, so that the repository explains itself."""

    name: str
    site_uid: str
    generation: int
    spec: dict[str, Any]
    identity: dict[str, object] = {}
    """Who it is on its site, beside the spec: ids, members, targets, owner. From it a lost catalogue is made again."""

    @property
    def escrow_keys(self) -> list[str]:
        """The escrow keys that the group declared."""
        return list(self.spec.get("encryption", {}).get("escrow", []))


class RepositoryReader:
    """What a target holds of a group. `refresh` before use; safe for one thread at a time."""

    def __init__(
        self,
        store: Store,
        group_uid: str,
        data_keys: DataKeys,
        cache: BlockCache | None = None,
        segments: MutableMapping[str, StoredSegment] | None = None,
        *,
        reads_what_it_can: bool = False,
    ) -> None:
        """`cache` and `segments`, by name, may be shared among the readers of one target.

        `reads_what_it_can`: of manifests that are not authentic, those before are read, and `latest` is refused. For where
        objects are locked: what was written stays, and whoever has the writer's keys can add to it.
        """
        self.store = store
        self.group_uid = group_uid
        self.data_keys = data_keys
        self.cache = cache or BlockCache()
        self._segments: MutableMapping[str, StoredSegment] = {} if segments is None else segments
        self._reads_what_it_can = reads_what_it_can
        self._end_damage: Corruption | None = None
        self._tails = TailReader(store, data_keys, group_uid)
        self._tail: TailSegment | None = None
        self.state: RepositoryState | None = None

    def refresh(self) -> None:
        """Read what came since the last time; no repository yet is no error. Corruption if it is damaged."""
        for _ in range(TAIL_TRIES):
            self.refresh_manifests()
            damages = self.read_tails()
            if self.state is None or not self.state.last.tails:
                return
            # A tail goes once a manifest has passed it: if one has come meanwhile, the two may not fit together. And what
            # was being written while it was read may look damaged.
            newest = manifest.manifest_key(self.state.last.seq)
            if not damages and next(iter(self.store.list("m/", newest)), None) is None:
                return

    def read_tails(self) -> list[tuple[str, Corruption]]:
        """Read what lies behind the manifests; returns the tails that hold less than they should."""
        tailed = self.state is not None and self.state.last.tails
        self._tail = self._tails.read(self.state, self._stored_end) if self.state is not None and tailed else None
        return self._tails.damages

    def _stored_end(self) -> StoredEnd:
        refs = self._stored_refs()
        marked = next((ref for ref in reversed(refs) if ref.marks is not None), None)
        mark = self.stored(marked).marks()[-1] if marked else None
        newest = max((ref for ref in refs if ref.kind != SegmentKind.FILL), key=lambda ref: ref.lsn_to, default=None)
        kinds = self.stored(newest).rows["kind"].tolist() if newest else []
        return StoredEnd(mark, newest.stamp_to if newest else 0, not kinds or kinds[-1] == Kind.MARK)

    def refresh_manifests(self) -> None:
        """`refresh` without tails: what is committed."""
        after = manifest.manifest_key(self.state.last.seq) if self.state else ""
        try:
            info = read_info(self.store)
        except NotFound:
            if next(self.store.list("m/"), None) is None:
                return
            raise Corruption(
                "repository.json is missing, though manifests are there. `dpac verify` tells what it held."
            ) from None
        if info.group_uid != self.group_uid:
            raise Corruption(
                f"repository.json names the group {info.group_uid}, not {self.group_uid}: it is damaged or another group's. "
                "`dpac verify` tells what it held."
            )
        keys = [key for key in self.store.list("m/", start_after=after) if manifest.is_manifest_key(key)]
        complete = [at for at, key in enumerate(keys) if int(key[2:]) % manifest.COMPLETE_EVERY == 0]
        if self._reads_what_it_can:
            self._fold_what_can_be_read(keys, complete, info.repository_uid)
            return
        keys = keys[complete[-1] :] if complete else keys
        found = (self._manifest(key, info.repository_uid) for key in keys)
        self.state = manifest.fold(found, self.state)

    def _fold_what_can_be_read(self, keys: list[str], complete: list[int], repository_uid: str) -> None:
        """Begin with the newest complete manifest that is authentic; stop at the first one that is not."""
        self._end_damage = None
        for begin in [*reversed(complete), 0] if keys else []:
            for key in keys[begin:]:
                try:
                    self.state = manifest.step(self.state, self._manifest(key, repository_uid))
                except Corruption as error:
                    self._end_damage = self._end_damage or error
                    break
            if self.state is not None and self.state.last.key >= keys[begin]:
                return

    def _manifest(self, key: str, repository_uid: str) -> Manifest:
        read = self.open_manifest(key, self.store.get(key))
        if read.repository != repository_uid:
            raise Corruption(
                f"{key} is of the repository {read.repository}, and repository.json names {repository_uid}: one of them is "
                "damaged, or objects were mixed. `dpac verify` tells which."
            )
        return read

    def open_manifest(self, key: str, data: bytes) -> Manifest:
        """The manifest in the bytes of the object `key`.

        Corruption if it is not exactly what was stored there; NotFound if its data key lies here and cannot be opened.
        """
        key_id = manifest.manifest_key_id(data)
        try:
            data_key = self.data_keys(key_id)
        except (NotFound, Invalid) as error:
            if f"keys/{key_id}" in self.store.list("keys/"):
                raise
            raise Corruption(
                f"{key} names a data key, {key_id!r}, that lies neither there nor on this site."
            ) from error
        read = manifest.decode_manifest(data, data_key, self.group_uid)
        if read.key != key:
            raise Corruption(f"{key} holds manifest {read.seq}: objects were moved or mixed. Put back what lay there.")
        return read

    def spec(self) -> SpecObject:
        """The newest spec object: the group as it was declared."""
        state = self.require_state()
        return open_spec(self.store, state.last, self.data_keys(state.last.key_id))

    def require_state(self) -> RepositoryState:
        """What the manifests add up to; Unrecoverable if there is none."""
        if self.state is None:
            raise Unrecoverable(
                "The target holds nothing of this group yet. Wait for its first segment (`dpac status`)."
            )
        return self.state

    def refs(self) -> list[SegmentRef]:
        """Live segments in LSN order; those of one range in the order in which they were committed; last what tails hold."""
        return [*self._stored_refs(), *([self._tail.ref] if self._tail else [])]

    def _stored_refs(self) -> list[SegmentRef]:
        segments = self.state.segments.values() if self.state else ()
        return sorted(segments, key=lambda ref: (ref.lsn_from, ref.lsn_to))

    def ranges(self) -> list[SegmentRef]:
        """Segments that may hold recoverable checkpoints, oldest first; their `marks` say which."""
        start = self.state.recoverable_from if self.state is not None else None
        if start is None:
            return []
        return [ref for ref in self.refs() if ref.marks and ref.lsn_to > start]

    def exact_marks(self, ref: SegmentRef) -> list[Mark]:
        """The recoverable checkpoints in a segment, oldest first."""
        return [mark for mark in self.segment(ref).marks() if self.members_at(mark)]

    def is_uniform(self, ref: SegmentRef) -> bool:
        """Every checkpoint in the segment is recoverable, as its manifest alone tells."""
        bounds = [lsn for member in self.require_state().members.values() for pair in member.ready for lsn in pair]
        ends = [end for member in self.require_state().members.values() for _, end in member.ready if end is not None]
        return not ends and not any(lsn is not None and ref.lsn_from < lsn for lsn in bounds)

    def marks(self, wanted: Callable[[SegmentRef], bool] = lambda _: True) -> Iterator[Mark]:
        """Recoverable checkpoints, newest first; `wanted` tells which segments are worth opening."""
        for ref in reversed(self.ranges()):
            if wanted(ref):
                yield from reversed(self.exact_marks(ref))

    def resolve(self, selector: str) -> Mark:
        """The checkpoint that a selector names; Unrecoverable if none here does, Invalid if it is no selector.

        Corruption for `latest` if what came last cannot be read: an older checkpoint must then be asked for by its name.
        """
        self.check_end(selector)
        return checkpoints.select(self.marks(wanted=worth_opening(selector)), selector)

    def check_end(self, selector: str) -> None:
        """Corruption if the selector means the newest checkpoint and what came last cannot be read."""
        damage = self._end_damage or next((damage for _, damage in self._tails.damages), None)
        if damage is not None and selector in ("latest", "latest-clean"):
            raise Corruption(
                f"{damage.message} Choose a checkpoint before it (`dpac checkpoints GROUP`), or another target."
            )

    def segment(self, ref: SegmentRef) -> StoredSegment | TailSegment:
        """The segment, with a shared cache."""
        if self._tail is not None and ref.name == self._tail.ref.name:
            return self._tail
        return self.stored(ref)

    def stored(self, ref: SegmentRef) -> StoredSegment:
        """A segment that a manifest names."""
        found = self._segments.get(ref.name)
        if found is None:
            found = self._segments[ref.name] = StoredSegment(self.store, ref, self.data_keys, self.cache)
        return found

    def image(self, mark: Mark) -> Image:
        """The group at a checkpoint."""
        return self.image_of(self.refs_of(mark), mark.lsn)

    def refs_of(self, mark: Mark) -> list[SegmentRef]:
        """The segments that a checkpoint is made of, as they are now: compaction may replace them."""
        return [ref for ref in self.refs() if ref.lsn_from <= mark.lsn]

    def image_of(self, refs: Iterable[SegmentRef], lsn: int) -> Image:
        """The group at an LSN, out of segments that were its own once and are still there."""
        segments = [self.segment(ref) for ref in refs]
        return Image(lambda: _opened(segments), lsn)

    def is_stored(self, ref: SegmentRef) -> bool:
        """A manifest names it: it does not come from a tail."""
        return self._tail is None or ref.name != self._tail.ref.name

    def members_at(self, mark: Mark) -> dict[int, MemberState]:
        """The members that the checkpoint holds here, by ordinal; empty if it is not recoverable here."""
        state = self.require_state()
        held = state.recoverable_members((int(ordinal) for ordinal in mark.body.cuts), mark.lsn)
        return {ordinal: state.members[ordinal] for ordinal in sorted(held or ())}


def _opened(segments: list[StoredSegment | TailSegment]) -> list[StoredSegment | TailSegment]:
    """The segments, opened side by side: a history has many, and each costs two requests."""
    with ThreadPoolExecutor(OPEN_THREADS, thread_name_prefix="open") as pool:
        for _ in pool.map(lambda segment: segment.rows, segments):
            pass  # raises what opening it raised
    return segments


def worth_opening(selector: str) -> Callable[[SegmentRef], bool]:
    """Which segments may hold the selected checkpoint, by their ranges alone."""
    if selector == "latest-app":
        return lambda ref: ref.marks is not None and ref.marks.app_count > 0
    kind, _, value = selector.partition(":")
    if kind == "tag":
        return lambda ref: ref.marks is not None and any(tag == value for tag, _ in ref.marks.tags)
    if kind == "before":
        limit = checkpoints.timestamp_ns(value)
        return lambda ref: ref.marks is not None and ref.marks.first_stamp < limit
    if selector.startswith("ck-"):
        sequence = checkpoints.sequence_of(selector)
        return lambda ref: ref.marks is not None and ref.marks.first_sequence <= sequence <= ref.marks.last_sequence
    return lambda _: True


def read_info(store: Store) -> RepositoryInfo:
    """`repository.json`; NotFound if there is no repository, Unsupported if it is too new."""
    try:
        info = msgspec.json.decode(store.get("repository.json"), type=RepositoryInfo)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Corruption(f"repository.json cannot be read: {error}.") from None
    if info.format != manifest.FORMAT_VERSION or info.features & ~int(SUPPORTED_FEATURES):
        raise Unsupported(f"The repository has format {info.format}; this build reads {manifest.FORMAT_VERSION}.")
    return info


def spec_key(number: int) -> str:
    """Where the spec object of that number lies."""
    return f"spec/{number:010d}"


def open_spec(store: Store, last: Manifest, data_key: bytes) -> SpecObject:
    """The spec object that a manifest names."""
    data = store.get(spec_key(last.spec))
    associated = f"{last.group} spec {last.spec}".encode()
    return msgspec.json.decode(Seal(data_key, data[:32], associated).open(Domain.BLOCK, 0, data[32:]), type=SpecObject)


class RepositoryWriter:
    """The one writer of a repository. Not for threads; each call blocks until the target has it."""

    def __init__(
        self,
        store: Store,
        group_uid: str,
        key_id: str,
        wrapped_key: bytes,
        data_keys: DataKeys,
        clock: Clock,
        locks: ObjectLocks | None = None,
    ) -> None:
        """`locks`: of a store that locks what is written, and lists what was deleted as well."""
        self.store = store
        self.locks = locks
        self._group_uid = group_uid
        self._key_id = key_id
        self._wrapped_key = wrapped_key
        self._data_key = data_keys(key_id)
        self._clock = clock
        self.uid = secrets.token_hex(16)
        """Of this opening; every manifest it writes names it."""
        self.reader = RepositoryReader(store, group_uid, data_keys)
        self._repository_uid = ""

    def open(self, known_uid: str = "") -> RepositoryState | None:
        """Make the repository if there is none; its state, None if nothing was ever committed.

        With `known_uid` it is the repository of that uid or none: TargetMissing if nothing lies there any more, Conflict if
        another one does. Unsupported if the store lets a second create of one key through, or cannot lock what it shall.
        """
        if self.locks is not None:
            self.locks.prove()
        if known_uid:
            self._require(known_uid)
        self._found()
        self._repository_uid = read_info(self.store).repository_uid
        self._put_key()
        self.reader.refresh_manifests()
        return self.reader.state

    def open_stored(self) -> RepositoryState:
        """Open what lies there, and make nothing. Unrecoverable if nothing was ever committed."""
        self.reader.refresh_manifests()
        state = self.reader.require_state()
        self._repository_uid = state.last.repository
        return state

    def _put_key(self) -> None:
        name = f"keys/{self._key_id}"
        with contextlib.suppress(NotFound, Corruption):
            if self.store.get(name) == self._wrapped_key:
                return  # where objects are locked, each put would stay
        self.store.put(name, self._wrapped_key)

    def visible(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix` and were not deleted, in order."""
        return self.locks.visible(prefix) if self.locks is not None else self.store.list(prefix)

    @property
    def repository_uid(self) -> str:
        """Of the repository that is open."""
        return self._repository_uid

    def probe(self) -> None:
        """See that the repository is still there; errors as of `open`."""
        self._require(self._repository_uid)

    def _require(self, uid: str) -> None:
        try:
            found = read_info(self.store).repository_uid
        except NotFound:
            raise TargetMissing(
                "The target is there but empty, though copies of this group lay there: most likely what belongs there is not "
                "mounted. Mount it. If the copies are gone for good, remove the leg and declare it again: all is copied anew."
            ) from None
        if found != uid:
            raise Conflict(
                f"Another repository ({found}) lies at the target than this leg wrote ({uid}): another disk is mounted "
                "there, or an old copy was put back. Mount the right one, or remove the leg and declare it again."
            )

    def _found(self) -> None:
        """Make `repository.json` if it is missing, and see that it cannot be created again.

        Its create is the proof that a manifest's would be refused to a stale primary: asked at every opening, since a
        server can lose the ability with an update, and with the bytes that lie there, so that asking changes nothing.
        """
        info = RepositoryInfo(manifest.FORMAT_VERSION, int(SUPPORTED_FEATURES), secrets.token_hex(16), self._group_uid)
        try:
            stored = self.store.get("repository.json")
        except NotFound:
            stored = msgspec.json.encode(info)
            with contextlib.suppress(Conflict):
                self.store.create("repository.json", stored)
        try:
            self.store.create("repository.json", stored)
        except Conflict:
            return
        raise Unsupported(
            "The target lets a second create of one object through (it ignores `If-None-Match`), so that a stale primary "
            "could not be kept out. Nothing is shipped there. Use a server with conditional writes (docs/s3.md)."
        )

    @property
    def state(self) -> RepositoryState | None:
        """What was committed."""
        return self.reader.state

    def held_volume(self, ordinal: int, lsn: int) -> VolumeImage:
        """A volume as all that was committed makes it up to an LSN, whether or not a checkpoint lies there.

        NotFound or Corruption if it is not there, or damaged.
        """
        reader = RepositoryReader(self.store, self._group_uid, self.reader.data_keys)  # its indexes go with the image
        reader.state = self.state
        return reader.image_of((ref for ref in reader.refs() if ref.lsn_from <= lsn), lsn).volume(ordinal)

    def put_escrow(self, escrow_keys: Sequence[str]) -> list[str]:
        """Make sure that a sound copy of the data key lies here for each escrow key.

        Returns the fingerprints of all the escrow keys for which one lies here, those of earlier declarations among them.
        """
        for escrow_key in escrow_keys:
            name = escrow.copy_key(self._key_id, escrow_key)
            try:
                escrow.check_copy(self.store.get(name), self._data_key, self._group_uid)
            except (NotFound, Corruption):
                self.store.put(name, escrow.seal(self._data_key, self._key_id, self._group_uid, escrow_key))
        prefix = escrow.copies_prefix(self._key_id)
        return [name.removeprefix(prefix) for name in self.store.list(prefix)]

    def put_spec(self, number: int, spec: SpecObject) -> None:
        """Store a spec object; a manifest names it later."""
        unique = secrets.token_bytes(32)
        associated = f"{self._group_uid} spec {number}".encode()
        sealed = Seal(self._data_key, unique, associated).close(Domain.BLOCK, 0, msgspec.json.encode(spec))
        self.store.put(spec_key(number), unique + sealed)

    def put_segment(
        self,
        rows: SegmentWriter,
        marks: Sequence[Mark],
        *,
        kind: SegmentKind,
        shard_uid: str,
        epoch: int,
        lsn_from: int,
        lsn_to: int,
        stamps: tuple[int, int],
        membership_version: int,
        compression_level: int,
        level: int = 0,
    ) -> SegmentRef:
        """Seal and store a segment; it counts once a manifest names it."""
        header = SegmentHeader(
            group_uid=bytes.fromhex(self._group_uid),
            shard_uid=bytes.fromhex(shard_uid),
            segment_id=secrets.token_bytes(32),
            key_id=bytes.fromhex(self._key_id),
            repository_uid=bytes.fromhex(self._repository_uid),
            epoch=epoch,
            lsn_from=lsn_from,
            lsn_to=lsn_to,
            stamp_from=stamps[0],
            stamp_to=stamps[1],
            membership_version=membership_version,
            kind=kind,
            level=level,
            block_bytes=BLOCK_BYTES if kind is SegmentKind.LOG else BULK_BLOCK_BYTES,
        )
        data = rows.seal(header, self._data_key, compression_level)
        self.store.put(header.name, data)
        return SegmentRef(
            name=header.name,
            kind=kind,
            epoch=epoch,
            lsn_from=lsn_from,
            lsn_to=lsn_to,
            stamp_from=stamps[0],
            stamp_to=stamps[1],
            bytes=len(data),
            blake3=blake3.blake3(data).hexdigest(),
            level=level,
            marks=manifest.mark_range(marks),
        )

    def begin_tail(
        self, shard_uid: str, epoch: int, lsn_from: int, incarnation: int, opened_lsn: int
    ) -> tuple[TailHeader, bytes]:
        """A new tail's header and data key. Conflict if another primary has written since this one opened."""
        state = self.reader.state
        assert state is not None, "the epoch is in a manifest before a tail carries it"
        self.store.size(state.last.key)  # else this is not the target it was: a mount that is away, perhaps
        for key in self.store.list("m/", start_after=state.last.key):
            taken = self.reader._manifest(key, self._repository_uid)
            if taken.writer != self.uid:
                raise _overtaken(taken, epoch)
        header = TailHeader(
            group_uid=bytes.fromhex(self._group_uid),
            shard_uid=bytes.fromhex(shard_uid),
            tail_id=secrets.token_bytes(32),
            key_id=bytes.fromhex(self._key_id),
            repository_uid=bytes.fromhex(self._repository_uid),
            epoch=epoch,
            lsn_from=lsn_from,
            incarnation=incarnation,
            opened_lsn=opened_lsn,
        )
        return header, self._data_key

    def commit(
        self,
        *,
        epoch: int,
        epochs: Sequence[tuple[int, int]],
        cursor: dict[str, int],
        members: dict[int, MemberState],
        membership_version: int,
        spec: int,
        log_from: int,
        add: Iterable[SegmentRef] = (),
        drop: Iterable[str] = (),
        incarnation: int = 0,
        tails: bool = False,
        sync_lost: int = 0,
        holds: Sequence[Hold] | None = None,
    ) -> RepositoryState:
        """Create the next manifest: the sole commit. Conflict if another primary has written since.

        `holds`: every checkpoint that is held from now on; None: those that are.
        """
        last = self.reader.state
        new = Manifest(
            format=manifest.FORMAT_VERSION,
            seq=last.last.seq + 1 if last else 1,
            repository=self._repository_uid,
            group=self._group_uid,
            writer=self.uid,
            epoch=epoch,
            created=self._clock.now_ns(),
            key_id=self._key_id,
            spec=spec,
            membership_version=membership_version,
            epochs=list(epochs),
            cursor=cursor,
            members={str(ordinal): member for ordinal, member in members.items()},
            log_from=log_from,
            add=list(add),
            drop=list(drop),
            incarnation=incarnation,
            tails=tails,
            sync_lost=sync_lost,
            holds=list(holds) if holds is not None else last.last.holds if last else [],
        )
        if last and new.seq % manifest.COMPLETE_EVERY == 0:
            new = last.complete_manifest(new)
        try:
            self.store.create(f"{new.key}", manifest.encode_manifest(new, self._data_key))
        except Conflict:
            self._settle(new)
        self.reader.state = manifest.step(last, new)
        return self.reader.state

    def hold(self, hold: Hold) -> RepositoryState:
        """Hold a checkpoint, or change why and for how long. Unrecoverable if it is not here, nor can come."""
        state = self.reader.require_state()
        if hold.lsn < max(state.cursor.values(), default=0):
            self.reader.resolve(hold.checkpoint)
        others = [held for held in state.last.holds if held.checkpoint != hold.checkpoint]
        return self._commit_holds([*others, hold], hold.since)

    def release(self, checkpoint: str) -> RepositoryState:
        """Hold a checkpoint no longer; one that is not held is no error."""
        state = self.reader.require_state()
        others = [held for held in state.last.holds if held.checkpoint != checkpoint]
        return self._commit_holds(others, self._clock.now_ns()) if len(others) < len(state.last.holds) else state

    def _commit_holds(self, holds: Sequence[Hold], now_ns: int) -> RepositoryState:
        """All but the holds is as the last manifest says."""
        state = self.reader.require_state()
        last = state.last
        return self.commit(
            epoch=last.epoch,
            epochs=last.epochs,
            cursor=last.cursor,
            members=state.members,
            membership_version=last.membership_version,
            spec=last.spec,
            log_from=last.log_from,
            incarnation=last.incarnation,
            tails=last.tails,
            sync_lost=last.sync_lost,
            holds=[hold for hold in holds if hold.is_active(now_ns)],
        )

    def _settle(self, new: Manifest) -> None:
        # The number is taken. Ours, if a try that seemed to fail had succeeded; else another primary writes.
        taken = self.reader._manifest(new.key, new.repository)
        same = (taken.writer, taken.holds) == (new.writer, new.holds)
        same = same and [ref.name for ref in taken.add] == [ref.name for ref in new.add]
        if not same:
            raise _overtaken(taken, new.epoch)


def _overtaken(taken: Manifest, epoch: int) -> Conflict:
    return Conflict(
        f"Manifest {taken.seq} was written by another primary (epoch {taken.epoch}, ours {epoch}). "
        "This site stops shipping to the target: fail over explicitly, or remove the other writer."
    )
