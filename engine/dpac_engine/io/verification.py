"""Verification: read every object of a repository, authenticate every byte, and tell what is lost with what is damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import blake3
import msgspec

from dpac_api.errors import Corruption, Invalid, NotFound, Unrecoverable, Unsupported
from dpac_engine.core import manifest, tail
from dpac_engine.core.checkpoints import Mark, checkpoint_id
from dpac_engine.core.damage import (
    EVERY_CHECKPOINT,
    Finding,
    LostPart,
    Run,
    Spare,
    Verification,
    hurt,
    image_reads,
    lost_ranges,
    lost_rows,
    runs_of,
    spans_of_blocks,
)
from dpac_engine.core.entries import decode_entry
from dpac_engine.core.image import Span, TreeImage
from dpac_engine.core.manifest import Manifest, SegmentRef, manifest_key
from dpac_engine.core.records import Keyspace
from dpac_engine.core.segment import SUPPORTED_FEATURES, SegmentReader, decode_segment_header
from dpac_engine.io import escrow
from dpac_engine.io.repository import (
    RepositoryInfo,
    RepositoryReader,
    open_spec,
    read_info,
    spec_key,
)
from dpac_engine.io.stored_segment import READ_BYTES_MAX, StoredSegment
from dpac_engine.io.tails import TailSegment

CheckKey = Callable[[str, bytes], None]
"""Told the name of an object below `keys/` and its bytes: Corruption if they are not that key, Unsupported if it cannot tell."""
NAMED_MAX = 100
"""Ranges or paths that a finding names of a member; the rest is counted."""
_UNREAD = (Corruption, NotFound, Unsupported, Invalid)
"""What an object that is damaged, missing or not readable by this build raises."""


class Verifier:
    """One verification of the repository that `reader` reads; the reader must be of its own and not refreshed yet."""

    def __init__(
        self, reader: RepositoryReader, check_key: CheckKey, progress: Callable[[int, int | None], None]
    ) -> None:
        """`progress` is told bytes read, and bytes there are to read."""
        self._reader = reader
        self._store = reader.store
        self._check_key = check_key
        self._progress = progress
        self._findings: list[Finding] = []
        self._spares: list[Spare] = []
        self._seen: set[str] = set()
        self._bytes_read = 0
        self._bytes_total = 0
        self._features = 0
        self._marks: list[Mark] = []
        self._manifests: dict[str, Manifest] = {}

    def run(self, manifest_before: int = 0) -> Verification:
        """Read everything. `manifest_before`: number of the newest manifest that was ever seen here.

        What cannot be read because the store is away raises Temporary.
        """
        listed = [key for key in self._store.list("") if not key.startswith(manifest.SHARDS_PREFIX)]
        if not listed and not manifest_before:
            raise Unrecoverable(
                "The target holds nothing of this group yet. Wait for its first segment (`dpac status`)."
            )
        newest = self._read_manifests([key for key in listed if manifest.is_manifest_key(key)], manifest_before)
        self._read_keys([key for key in listed if key.startswith("keys/")])
        declared = self._read_spec() if self._reader.state is not None else []
        self._read_escrow([key for key in listed if key.startswith("escrow/")], declared)
        if self._reader.state is not None:
            self._read_segments()
        self._read_info(bool(newest))
        if self._reader.state is not None:
            self._read_tails([key for key in listed if key.startswith(tail.PREFIX)])
            self._look_for_spares(listed)
        sound = [mark for mark in self._marks if not self._is_hurt(mark.sequence)]
        return Verification(
            objects=len(self._seen),
            bytes_read=self._bytes_read,
            checkpoints=len(sound),
            findings=self._findings,
            spares=self._spares,
            newest=sound[-1] if sound else None,
            manifest=newest,
        )

    def _is_hurt(self, sequence: int) -> bool:
        return any(sequence in run for finding in self._findings for run in finding.runs)

    def _find(self, name: str, problem: str, runs: Sequence[Run] = (), *, exact: bool = True) -> None:
        self._findings.append(Finding(name, problem, runs, exact))

    def _get(self, name: str) -> bytes:
        self._seen.add(name)
        data = self._store.get(name)
        self._bytes_read += len(data)
        self._progress(self._bytes_read, max(self._bytes_total, self._bytes_read))
        return data

    # -------------------------------------------------------------- manifests and what they name

    def _read_manifests(self, listed: Sequence[str], manifest_before: int) -> int:
        """Authenticates each and folds those that are needed, as far as they go; returns the newest one's number."""
        bad = {key: problem for key in listed if (problem := self._manifest_problem(key)) is not None}
        repositories = Counter(read.repository for read in self._manifests.values())
        if repositories:
            [(repository, _)] = repositories.most_common(1)
            for key, read in list(self._manifests.items()):
                if read.repository != repository:
                    bad[key] = f"it belongs to the repository {read.repository}: objects were mixed"
                    del self._manifests[key]
        newest = max((_number(key) for key in listed), default=0)
        if listed:
            first = _number(listed[0])
            missing = {manifest_key(n) for n in range(first, newest)} - set(listed)
            bad |= dict.fromkeys(missing, "it is missing")
        self._fold(bad, newest)
        if newest < manifest_before:
            problem = f"It was here before and is missing: the repository ends with number {newest} now."
            self._find(manifest_key(manifest_before), f"{problem} The checkpoints that came with it are lost.")
        return newest

    def _manifest_problem(self, key: str) -> str | None:
        try:
            self._manifests[key] = self._reader.open_manifest(key, self._get(key))
        except _UNREAD as error:
            return error.message
        return None

    def _fold(self, bad: dict[str, str], newest: int) -> None:
        needed_from = manifest_key(newest - newest % manifest.COMPLETE_EVERY)
        needed = sorted(key for key in bad if key >= needed_from)
        for key, problem in sorted(bad.items()):
            if key in needed:
                until = manifest_key((newest // manifest.COMPLETE_EVERY + 1) * manifest.COMPLETE_EVERY)
                advice = f"What the target holds is not known without it until the running leg writes {until}, which replaces it."
                self._find(key, f"{problem} {advice}", [EVERY_CHECKPOINT], exact=False)
            else:
                self._find(key, f"{problem} A later manifest has replaced it.")
        readable = [key for key in sorted(self._manifests) if not needed or key < needed[0]]
        whole = [at for at, key in enumerate(readable) if self._manifests[key].complete]
        begin = whole[-1] if whole else 0
        try:
            self._reader.state = manifest.fold(self._manifests[key] for key in readable[begin:])
        except Corruption as error:
            self._reader.state = None
            name = readable[begin] if readable else manifest_key(newest)
            if not needed:
                self._find(name, error.message, [EVERY_CHECKPOINT], exact=False)

    def _read_info(self, has_manifests: bool) -> None:
        try:
            data = self._get("repository.json")
            problem = self._info_problem(read_info(self._store), data)
        except _UNREAD as error:
            problem = error.message
        if problem is not None:
            advice = f" Put back what lay there: {self._true_info()}" if self._manifests else ""
            self._find(
                "repository.json", f"{problem}{advice}", [EVERY_CHECKPOINT] if has_manifests else [], exact=False
            )

    def _info_problem(self, info: RepositoryInfo, data: bytes) -> str | None:
        if info.group_uid != self._reader.group_uid:
            return f"It names the group {info.group_uid}, not {self._reader.group_uid}."
        for read in self._manifests.values():
            if read.repository != info.repository_uid:
                return f"It names the repository {info.repository_uid}; the manifests are of {read.repository}."
        if self._features & ~info.features:
            return f"It names the features {info.features}; the segments have {self._features}."
        return None if msgspec.json.encode(info) == data else "Its bytes are not those that were written."

    def _true_info(self) -> str:
        repository = next(iter(self._manifests.values())).repository
        features = self._features or int(SUPPORTED_FEATURES)
        info = RepositoryInfo(manifest.FORMAT_VERSION, features, repository, self._reader.group_uid)
        return msgspec.json.encode(info).decode()

    def _read_keys(self, listed: Sequence[str]) -> None:
        needed = {f"keys/{read.key_id}" for read in self._manifests.values()}
        advice = (
            "This site has the key itself and its checkpoints can be read here; another host could not recover from this "
            "target. The leg writes the object again when it starts (`dpac stop`, `dpac serve`)."
        )
        for key in sorted(needed | set(listed)):
            try:
                self._check_key(key.removeprefix("keys/"), self._get(key))
            except Unsupported as error:
                self._spares.append(Spare(key, error.message))
            except _UNREAD as error:
                self._find(key, f"{error.message} {advice}")

    def _read_spec(self) -> list[str]:
        """The escrow keys that it declares."""
        last = self._reader.require_state().last
        key = spec_key(last.spec)
        self._seen.add(key)
        try:
            return open_spec(self._store, last, self._reader.data_keys(last.key_id)).escrow_keys
        except (*_UNREAD, msgspec.MsgspecError) as error:
            advice = "No checkpoint's data is read through it. The next change of the group writes a new one."
            self._find(key, f"The declaration stored there is damaged: {error} {advice}")
            return []

    def _read_escrow(self, listed: Sequence[str], declared: Sequence[str]) -> None:
        """No checkpoint's data is read through an escrow copy, so a finding names none."""
        remedy = "The leg writes it anew when it next opens the target, at the latest when the backend starts."
        newest = self._reader.state.last.key_id if self._reader.state is not None else ""
        for name in sorted({*listed, *(escrow.copy_key(newest, escrow_key) for escrow_key in declared)}):
            try:
                copy = self._get(name)
                escrow.check_copy(copy, self._reader.data_keys(name.split("/")[1]), self._reader.group_uid)
                if escrow.stored_at(copy) != name:
                    self._find(
                        name, f"What lies there is another copy, {escrow.stored_at(copy)}. Remove both. {remedy}"
                    )
            except NotFound:
                self._find(name, f"The copy for a declared escrow key is missing. {remedy}")
            except _UNREAD as error:
                self._find(name, f"{error.message} {remedy}")

    # -------------------------------------------------------------- segments

    def _read_segments(self) -> None:
        refs = self._reader.refs()
        self._bytes_total = self._bytes_read + sum(ref.bytes for ref in refs)
        damaged: list[tuple[SegmentRef, str, list[int] | None]] = []
        for ref in refs:
            found = self._read_segment(ref)
            if found is not None:
                damaged.append((ref, *found))
        unopened = {ref.name for ref, _, blocks in damaged if blocks is None}
        for ref in self._reader.ranges():
            if ref.name not in unopened:
                self._marks += self._reader.exact_marks(ref)
        self._marks.sort(key=lambda mark: mark.lsn)
        for ref, problem, blocks in damaged:
            self._findings.append(
                self._whole_segment(ref, problem) if blocks is None else self._blocks(ref, problem, blocks)
            )

    def _read_segment(self, ref: SegmentRef) -> tuple[str, list[int] | None] | None:
        """What is wrong with it, and its damaged blocks, None if its index cannot be read; None if it is sound."""
        try:
            data = self._get(ref.name)
            if blake3.blake3(data).hexdigest() == ref.blake3:
                self._features |= decode_segment_header(data).features
                return None
            problem = "Its bytes are not those that the manifest names (BLAKE3)."
        except _UNREAD as error:
            return error.message, None
        try:
            segment = StoredSegment(self._store, ref, self._reader.data_keys, self._reader.cache).reader
            blocks = _damaged_blocks(segment)
        except _UNREAD as error:
            return error.message, None
        return (f"{problem} {len(blocks)} of its {segment.block_count} blocks are damaged.", blocks)

    def _whole_segment(self, ref: SegmentRef, problem: str) -> Finding:
        """Its index is lost: everything it holds is, and which checkpoints go without it cannot be known."""
        first = next((mark for mark in self._marks if mark.lsn >= ref.lsn_from), None)
        sequences = [(first.id, first.sequence)] if first is not None else []
        if ref.marks is not None:
            sequences.append((checkpoint_id(ref.epoch, ref.marks.first_sequence), ref.marks.first_sequence))
        begin = min(sequences, key=lambda found: found[1], default=("", 0))
        last = self._marks[-1].id if first is not None else begin[0]
        return Finding(ref.name, problem, [Run(begin[0], begin[1], last, None)], exact=False)

    def _blocks(self, ref: SegmentRef, problem: str, blocks: Sequence[int]) -> Finding:
        """Its index is sound, so what its damaged blocks hold is known, and whom they hurt is computed."""
        segment = self._reader.segment(ref)
        assert isinstance(segment, StoredSegment), "a tail has no blocks"
        spans = spans_of_blocks(blocks, segment.reader.header.block_bytes)
        ranges, exact = hurt(self._marks, ref.lsn_from, ref.lsn_to, lambda mark: self._needs(mark, ref, spans))
        newest = self._marks[ranges[-1][1] - 1] if ranges else None
        # A chunk that no file uses any more counts as needed until its deletion: telling would mean to read every entry.
        exact = exact and not self._hits_chunks(ref, spans)
        return Finding(ref.name, problem, runs_of(self._marks, ranges), exact, self._lost_parts(ref, spans, newest))

    def _hits_chunks(self, ref: SegmentRef, spans: Sequence[Span]) -> bool:
        segment = self._reader.stored(ref)
        _, places = lost_rows(segment.rows, segment.keys, spans)
        return any(segment.keys[at][0] == Keyspace.CHUNK for at in places if at >= 0)

    def _needs(self, mark: Mark, ref: SegmentRef, spans: Sequence[Span]) -> bool:
        image = self._reader.image(mark)
        members = [(ordinal, member.kind) for ordinal, member in self._reader.members_at(mark).items()]
        try:
            source = next((at for at, other in enumerate(image.segments) if _name(other) == ref.name), None)
            return source is not None and image_reads(image, members, source, spans)
        except Corruption:  # another segment's index is lost: this one cannot be excluded
            return True

    def _lost_parts(self, ref: SegmentRef, spans: Sequence[Span], newest: Mark | None) -> list[LostPart]:
        segment = self._reader.stored(ref)
        rows, places = lost_rows(segment.rows, segment.keys, spans)
        parts: list[LostPart] = []
        for ordinal, member in sorted(self._reader.require_state().members.items()):
            mine = rows["member"] == ordinal
            keys = {segment.keys[at] for at, its in zip(places, mine.tolist(), strict=True) if its and at >= 0}
            ranges = lost_ranges(rows[mine], spans)
            paths = self._paths(ordinal, keys, newest)
            if ranges or paths:
                more = max(len(ranges) - NAMED_MAX, 0) + max(len(paths) - NAMED_MAX, 0)
                parts.append(LostPart(member.name, ranges[:NAMED_MAX], paths[:NAMED_MAX], more))
        return parts

    def _paths(self, ordinal: int, keys: set[tuple[int, bytes]], newest: Mark | None) -> list[str]:
        """The paths whose entries or chunks are lost: chunks belong to paths by the newest checkpoint that needs them."""
        paths = {key for keyspace, key in keys if keyspace == Keyspace.ENTRY}
        chunks = {key for keyspace, key in keys if keyspace == Keyspace.CHUNK}
        if chunks and newest is not None:
            try:
                paths |= _paths_of_chunks(self._reader.image(newest).tree(ordinal), chunks)
            except Corruption:  # an index that the image needs is lost too, and has a finding of its own
                paths |= {b"(files whose names are lost)"}
        return [path.decode(errors="backslashreplace") for path in sorted(paths)]

    def _read_tails(self, listed: Sequence[str]) -> None:
        self._seen.update(listed)
        for name, damage in self._reader.read_tails():
            self._find(name, damage.message)
        stored = {mark.id for mark in self._marks}
        for ref in self._reader.ranges():
            if ref.name.startswith(tail.PREFIX):
                self._marks += [mark for mark in self._reader.exact_marks(ref) if mark.id not in stored]

    # -------------------------------------------------------------- what nothing needs

    def _look_for_spares(self, listed: Iterable[str]) -> None:
        """Unreferenced objects; the manifests are read again first, for what was committed meanwhile."""
        before = self._reader.require_state()
        if not any(EVERY_CHECKPOINT in finding.runs for finding in self._findings):
            try:
                self._reader.refresh()
            except _UNREAD:  # it came after this verification began, and the next one will name it
                self._reader.state = before
        state = self._reader.require_state()
        for key in listed:
            if key in self._seen or key in state.segments or key in before.segments:
                continue
            self._spares.append(Spare(key, _why_spare(key, state.dropped)))


def _number(key: str) -> int:
    return int(key[2:])


def _name(segment: object) -> str:
    assert isinstance(segment, StoredSegment | TailSegment)
    return segment.ref.name


def _damaged_blocks(segment: SegmentReader) -> list[int]:
    bad: list[int] = []
    step = READ_BYTES_MAX // segment.header.block_bytes
    for first in range(0, segment.block_count, step):
        count = min(step, segment.block_count - first)
        try:
            segment.blocks(first, count)
        except Corruption:
            bad += [number for number in range(first, first + count) if _is_damaged(segment, number)]
    return bad


def _is_damaged(segment: SegmentReader, number: int) -> bool:
    try:
        segment.blocks(number, 1)
    except Corruption:
        return True
    return False


def _paths_of_chunks(tree: TreeImage, chunks: set[bytes]) -> set[bytes]:
    paths: set[bytes] = set()
    for path in tree.paths():
        try:
            entry = decode_entry(tree.read_entry(path), tree.read_chunk)
        except (Corruption, Unsupported):
            continue  # its own entry, or the list of its chunks, is lost, which names it already
        if not chunks.isdisjoint(entry.digests):
            paths.add(path)
    return paths


def _why_spare(key: str, dropped: dict[str, int]) -> str:
    if key in dropped:
        return "it was merged into other segments; compaction deletes it a day after that"
    if key.startswith("s/"):
        return "no manifest names it: a crash left it, or it was just written; compaction deletes it in a day"
    if key.startswith("spec/"):
        return "a declaration of the group that the newest manifest does not name"
    return "it is no object of a repository"
