"""Integrity: whatever one bit of whatever object is flipped, it is found and named, and wrong bytes are never read.

Fault model: the store gives back other bytes than were written, of one object at a time: a bit flipped, the end cut off,
another object's bytes, an earlier state, nothing at all. The seed is printed; the soak run tries every bit.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dpac_api.errors import Corruption, DpacError, Unrecoverable, Unsupported
from dpac_engine.control.repositories import TargetRepository
from dpac_engine.core import manifest, retention
from dpac_engine.core.damage import EVERY_CHECKPOINT, Finding, Verification
from dpac_engine.core.segment import BULK_BLOCK_BYTES, SegmentKind
from dpac_engine.io.repository import RepositoryReader, read_info
from dpac_engine.io.stores.memory import MemoryStore
from tests.repositories.small import GROUP, SIZE_BYTES, SmallRepository, small_repository

SAMPLES = 160


@pytest.fixture
def repository(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallRepository:
    """Every fourth manifest complete, and merged however little there is, so that a small one has all there can be."""
    monkeypatch.setattr(manifest, "COMPLETE_EVERY", 4)
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)
    return small_repository(tmp_path, size_bytes=getattr(request, "param", SIZE_BYTES))


def live(repository: SmallRepository) -> set[str]:
    """Objects that something needs."""
    state = repository.reader().require_state()
    return {name for name in repository.store.objects if not name.startswith("s/") or name in state.segments} - {
        "spec/0000000000"
    }


def check(repository: SmallRepository, name: str, what: str) -> Verification:
    """The object was changed: verify names it, nothing wrong is read, and who is hurt is told rightly."""
    found = repository.verify()
    named = {finding.object for finding in found.findings}
    assert name in named, f"{what}: named were {named}"
    hurt: set[str] = set()
    for checkpoint, content in repository.read_all().items():
        if isinstance(content, DpacError):
            allowed = (Corruption, Unrecoverable, *([Unsupported] if name == "repository.json" else []))
            assert isinstance(content, allowed), f"{what}: {content!r}"
            hurt.add(checkpoint)
        else:
            assert content == repository.content[checkpoint], f"{what}: wrong bytes at {checkpoint}"
    said = {at for at in repository.content if is_hurt(found, at)}
    assert hurt <= said, f"{what}: {hurt - said} cannot be read, and it was not said"
    if all(finding.exact for finding in found.findings):
        assert hurt == said, f"{what}: {said - hurt} are said to be hurt and can be read"
    return found


def is_hurt(found: Verification, checkpoint: str) -> bool:
    """Whether the verification says that a checkpoint needs something damaged."""
    sequence = int(checkpoint.rpartition("-")[2])
    return any(sequence in run for finding in found.findings for run in finding.runs)


def flips(repository: SmallRepository, names: set[str]) -> Iterator[tuple[str, int, int]]:
    """Every (object, byte, bit)."""
    for name in sorted(names):
        for at in range(len(repository.store.objects[name])):
            yield from ((name, at, bit) for bit in range(8))


def try_flip(repository: SmallRepository, name: str, at: int, bit: int) -> None:
    """Flip it, check, and flip it back."""
    sound = repository.store.objects[name]
    damaged = bytearray(sound)
    damaged[at] ^= 1 << bit
    repository.store.objects[name] = bytes(damaged)
    check(repository, name, f"bit {bit} of byte {at} of {name}")
    repository.store.objects[name] = sound


def test_a_sound_repository_has_no_findings_and_every_object_is_looked_at(repository: SmallRepository) -> None:
    """What nothing needs is listed as reclaimable, and is no damage."""
    found = repository.verify()
    assert found.findings == []
    assert {spare.object for spare in found.spares} == set(repository.store.objects) - live(repository)
    assert found.objects == len(live(repository))
    assert found.checkpoints == len(repository.content)
    assert found.newest is not None
    assert found.newest.id == list(repository.content)[-1]
    kinds = {ref.kind for ref in repository.reader().refs()}
    assert {SegmentKind.LOG, SegmentKind.MERGED} <= kinds
    assert all(content == repository.content[at] for at, content in repository.read_all().items())


def test_a_flipped_bit_anywhere_is_found_and_never_served(repository: SmallRepository) -> None:
    """A sample of every object's bits, as many of a small object as of a large one."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = sorted(live(repository))
    for number in range(SAMPLES):
        name = names[number % len(names)]
        try_flip(repository, name, chance.randrange(len(repository.store.objects[name])), chance.randrange(8))


@pytest.mark.soak
def test_every_flipped_bit_of_every_object_is_found_and_never_served(
    repository: SmallRepository, tmp_path: Path
) -> None:
    """All of them, of one with little in its blocks: it takes an hour or two."""
    repository = small_repository(tmp_path / "less", size_bytes=8192)
    for name, at, bit in flips(repository, live(repository)):
        try_flip(repository, name, at, bit)


def test_a_flipped_bit_of_each_byte_of_the_unsealed_objects_is_found(repository: SmallRepository) -> None:
    """`repository.json` and the wrapped key have no checksum of their own: a bit of every byte of theirs."""
    names = {name for name in repository.store.objects if name == "repository.json" or name.startswith("keys/")}
    assert len(names) == 2
    for name, at, bit in flips(repository, names):
        if bit == at % 8:
            try_flip(repository, name, at, bit)


def test_a_repository_uid_that_is_none_is_damage() -> None:
    """Before the first manifest nothing else tells the uid: the leg says that the target is damaged, and does not end by a defect."""
    store = MemoryStore()
    for uid in ("5" * 32, "5" * 31 + "u", "5" * 31, "5" * 31 + "\n"):
        info = {"format": manifest.FORMAT_VERSION, "features": 0, "repository_uid": uid, "group_uid": GROUP}
        store.put("repository.json", msgspec.json.encode(info))
        if uid == "5" * 32:
            assert read_info(store).repository_uid == uid
        else:
            with pytest.raises(Corruption, match=r"repository\.json cannot be read"):
                read_info(store)


def test_an_object_cut_short_is_found(repository: SmallRepository) -> None:
    """At nothing, at one byte less, and somewhere between."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for name in sorted(live(repository)):
        sound = repository.store.objects[name]
        for length in (0, len(sound) - 1, *(chance.randrange(len(sound)) for _ in range(4))):
            repository.store.objects[name] = sound[:length]
            check(repository, name, f"{name} cut to {length}")
        repository.store.objects[name] = sound


def test_a_missing_object_is_found(repository: SmallRepository) -> None:
    """The newest manifest's loss shows by what was seen before: nothing that is left tells of it."""
    newest = max(name for name in repository.store.objects if name.startswith("m/"))
    first = min(name for name in repository.store.objects if name.startswith("m/"))
    for name in sorted(live(repository) - {newest, first}):
        sound = repository.store.objects.pop(name)
        check(repository, name, f"{name} missing")
        repository.store.objects[name] = sound
    del repository.store.objects[newest]
    found = repository.verify(manifest_before=int(newest[2:]))
    assert [finding.object for finding in found.findings] == [newest]


def test_objects_that_changed_places_are_found(repository: SmallRepository) -> None:
    """Each is authentic, and not what was stored there: manifests, segments, the declaration and an earlier one."""
    repository.writer.put_spec(0, repository.reader().spec())
    for prefix in ("m/", "s/", "spec/", "escrow/"):
        names = sorted(name for name in repository.store.objects if name.startswith(prefix))
        for one, other in itertools.pairwise(names):
            objects = repository.store.objects
            objects[one], objects[other] = objects[other], objects[one]
            for name in {one, other} & live_before(objects, one, other, repository):
                check(repository, name, f"{one} and {other} swapped")
            objects[one], objects[other] = objects[other], objects[one]


def live_before(objects: dict[str, bytes], one: str, other: str, repository: SmallRepository) -> set[str]:
    """`live`, of the repository as it was before the two changed places."""
    objects[one], objects[other] = objects[other], objects[one]
    try:
        return live(repository)
    finally:
        objects[one], objects[other] = objects[other], objects[one]


def test_a_segment_under_anothers_name_is_not_read(repository: SmallRepository) -> None:
    """Even one of the very size that the manifest names, sealed with the same key: its header says which it is."""
    reader = repository.reader()
    one, other = reader.refs()[-2:]
    forged = msgspec.structs.replace(other, bytes=one.bytes)
    repository.store.objects[other.name] = repository.store.objects[one.name]
    with pytest.raises(Corruption, match="another segment"):
        reader.segment(forged).rows  # noqa: B018 - this opens it


def test_an_older_manifest_put_back_is_found(repository: SmallRepository) -> None:
    """A manifest under a later one's name is not believed, however authentic it is."""
    names = sorted(name for name in repository.store.objects if name.startswith("m/"))
    sound = repository.store.objects[names[-1]]
    repository.store.objects[names[-1]] = repository.store.objects[names[-2]]
    check(repository, names[-1], "an older manifest")
    repository.store.objects[names[-1]] = sound


@pytest.mark.parametrize("repository", [3 * BULK_BLOCK_BYTES], indirect=True)
def test_damage_is_named_by_member_range_and_path(repository: SmallRepository) -> None:
    """The base's first block holds ranges of the disk, its last one files too: those are named, with what each is."""
    first = damage_block(repository, 0)
    (disk,) = first.lost
    assert disk.member == "disk"
    assert sum(length for _, length in disk.ranges) == BULK_BLOCK_BYTES
    assert first.exact
    last = damage_block(repository, -1)
    orders = next(part for part in last.lost if part.member == "orders")
    assert "notes.txt" in orders.paths
    assert not last.exact, "chunks are in it, and a chunk may be unused"


def damage_block(repository: SmallRepository, number: int) -> Finding:
    """The finding about a bit flipped in a block of the largest segment, which is sound again afterwards."""
    ref = max(repository.reader().refs(), key=lambda ref: ref.bytes)
    segment = repository.reader().segment(ref).reader
    blocks = [len(data) for data in segment.blocks(0, segment.block_count)]
    sound = repository.store.objects[ref.name]
    damaged = bytearray(sound)
    # Random data is stored as it is: a codec byte before it and a tag behind it.
    damaged[256 + (0 if number == 0 else sum(length + 17 for length in blocks[:-1])) + 5] ^= 1
    repository.store.objects[ref.name] = bytes(damaged)
    (finding,) = repository.verify().findings
    repository.store.objects[ref.name] = sound
    assert finding.object == ref.name
    return finding


def test_a_checkpoint_after_the_damaged_data_was_overwritten_is_not_hurt(tmp_path: Path) -> None:
    """A write, a checkpoint, the same range written again, a checkpoint: the first write's damage hurts the first alone."""
    repository = SmallRepository(tmp_path, size_bytes=3 * BULK_BLOCK_BYTES)
    repository.seed()
    repository.write()
    base = repository.reader().refs()[0]
    for _ in range(3):
        repository.overwrite()
    damaged = bytearray(repository.store.objects[base.name])
    damaged[300] ^= 1
    repository.store.objects[base.name] = bytes(damaged)
    found = check(repository, base.name, "the seed's first block")
    (finding,) = found.findings
    (run,) = finding.runs
    assert (run.first, run.last, run.last_sequence) == ("ck-1-1", "ck-1-2", 2)
    assert found.checkpoints == 3
    assert found.newest is not None
    assert found.newest.id == "ck-1-5"


def test_a_damaged_manifest_is_named_and_what_depends_on_it_said(repository: SmallRepository) -> None:
    """One that is needed hurts every checkpoint until a complete one replaces it; one that is not hurts none."""
    names = sorted(name for name in repository.store.objects if name.startswith("m/"))
    complete = [name for name in names if int(name[2:]) % 4 == 0]
    for name in (names[-1], names[0]):
        sound = repository.store.objects[name]
        repository.store.objects[name] = sound.replace(b"seq", b"sep", 1)
        (finding,) = repository.verify().findings
        assert finding.object == name
        assert list(finding.runs) == ([EVERY_CHECKPOINT] if name >= complete[-1] else [])
        repository.store.objects[name] = sound


def test_latest_is_the_newest_checkpoint_that_no_known_damage_hurts(repository: SmallRepository) -> None:
    """The newest segment's index is lost, which hides its checkpoints; the segment before it is damaged: both are passed over."""
    refs = repository.reader().refs()
    lost, hurt = refs[-1], refs[-2]
    sound = repository.store.objects[lost.name]
    for ref, at in ((lost, lost.bytes - 80), (hurt, 300)):
        damaged = bytearray(repository.store.objects[ref.name])
        damaged[at] ^= 1
        repository.store.objects[ref.name] = bytes(damaged)
    found = repository.verify()
    assert {finding.object for finding in found.findings} == {lost.name, hurt.name}
    target = TargetRepository(
        RepositoryReader(repository.store, GROUP, repository.keyring.data_key), repository.keyring.check_stored
    )
    target.refresh()
    mark, passed_over = target.resolve("latest", found.findings)
    assert mark == found.newest
    assert passed_over is not None
    assert hurt.marks is not None
    assert passed_over.sequence == hurt.marks.last_sequence
    assert target.resolve(passed_over.id, found.findings) == (passed_over, None)
    with pytest.raises(Corruption, match=lost.name):
        target.resolve("latest", [Finding(lost.name, "", [EVERY_CHECKPOINT])])
    repository.store.objects[lost.name] = sound
    target = TargetRepository(repository.reader(), repository.keyring.check_stored)
    with pytest.raises(Unrecoverable, match="by its id"):
        target.resolve("latest", [Finding(hurt.name, "", [EVERY_CHECKPOINT])])
    assert target.needs(hurt.name)
    assert not target.needs("s/merged-away")
