"""What the engine promises to keep, each promise as a small story on a disk that then loses power.

A `Scenario` has acts, each a process that ends by kill -9 (the page cache outlives it), and then, after the power cut, a
check in one more process. An act tells what was promised by then (`say`); the check gets it and raises if it is not so.
Imports of the engine lie within the functions: one of its syncs may have to be left out first.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.powercut.disk import SYNC_ATTRIBUTE, UNSYNCED_ATTRIBUTE

Say = Callable[..., None]
Said = dict[str, Any]
SPOOL_FILE_BYTES = 64 * 1024
KEK = bytes(range(32))
TAG = 77


@dataclass(frozen=True)
class Scenario:
    """A promise."""

    acts: tuple[Callable[[Path, Say], None], ...]
    check: Callable[[Path, Said], None]


# ---------------------------------------------------------------- the spool


def _spool(root: Path, incarnation: int = 1) -> Any:
    """A shard's spool as a group opens it, of small files; its callbacks run on the commit thread."""
    from dpac_engine.io import spool

    spool.FILE_BYTES = SPOOL_FILE_BYTES
    found = list(spool.scan(root / "group" / "spool", 0, TAG, 0))
    head = found[-1][0].next_lsn if found else 0
    stamps = itertools.count(1)
    return spool.Spool(
        root / "group" / "spool",
        spool.Identity(TAG, 1, incarnation),
        head,
        0,
        lambda call: call(),
        lambda: next(stamps),
        lambda error: None,
    )


def _append(spool: Any, count: int) -> None:
    from dpac_engine.core.records import Kind
    from dpac_engine.io.spool import Entry

    for number in range(count):
        spool.append([Entry(Kind.WRITE, 0, 1, number * 4096, 4096, number.to_bytes(2, "big") * 2048)])


def _wait_durable(spool: Any) -> int:
    import threading

    lsn, done = spool.head_lsn, threading.Event()
    outcome: list[OSError | None] = []
    spool.when_durable(lsn, lambda error: (outcome.append(error), done.set()))
    assert done.wait(20)
    assert outcome == [None]
    return int(lsn)


def _flushed_records(root: Path, say: Say) -> None:
    spool = _spool(root)
    for _ in range(3):
        _append(spool, 9)
        say(lsn=_wait_durable(spool))
    _append(spool, 3)


def _unflushed_records(root: Path, say: Say) -> None:
    """More than one file of them, in the page cache when the process ends."""
    _append(_spool(root), 20)


def _found_records_flushed(root: Path, say: Say) -> None:
    spool = _spool(root, 2)
    assert spool.head_lsn > SPOOL_FILE_BYTES
    say(lsn=_wait_durable(spool))


def _check_records(root: Path, said: Said) -> None:
    from dpac_engine.io import spool

    spool.FILE_BYTES = SPOOL_FILE_BYTES
    found = list(spool.scan(root / "group" / "spool", 0, TAG, 0))
    head = found[-1][0].next_lsn if found else 0
    assert head >= said["lsn"], f"the records from LSN {head} to {said['lsn']} are gone"
    for number, (header, payload) in enumerate(found):
        expected = header.offset // 4096
        assert bytes(payload) == expected.to_bytes(2, "big") * 2048, f"record {number} holds something else"


def _spare_made(root: Path, say: Say) -> None:
    spool = _spool(root)
    for _ in range(10):  # who syncs after every few records shall not wait for a file system's journal at each
        _append(spool, 1)
        _wait_durable(spool)
    deadline = time.monotonic() + 60
    while not list((root / "group" / "spool").glob("*.spare")) or spool._spares.making:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (spare,) = (root / "group" / "spool").glob("*.spare")
    # Whoever first uses it waits for its own records alone, not for the zeroes of the whole file.
    assert os.getxattr(spare, UNSYNCED_ATTRIBUTE) == b"0", "the first FLUSH in a new file would wait for its zeroes"


def _nothing(root: Path, said: Said) -> None:
    """The act itself has failed if the promise was broken."""


# ---------------------------------------------------------------- volumes


class _Rig:
    """A volume over a spool, on an event loop."""

    def __init__(self, root: Path) -> None:
        from dpac_engine.io.members.volume import Volume

        self.loop = asyncio.get_running_loop()
        self.spool = _spool(root)
        self.spool._call = self.loop.call_soon_threadsafe
        (root / "volumes").mkdir(exist_ok=True)
        self.volume = Volume(root / "volumes" / "disk.raw", 1, self.spool, self.loop, ThreadPoolExecutor(2), 1 << 30)
        self.volume.resize(64 * 4096)

    def write(self, block: int, content: bytes) -> None:
        from dpac_engine.io.nbd.export import Change, ChangeKind

        self.volume.submit([Change(ChangeKind.WRITE, block * 4096, 4096, memoryview(content * 4096))])

    async def apply(self) -> None:
        assert await self.volume._durable(self.spool.head_lsn)
        while self.volume._pending:
            await self.volume._apply_batch()

    async def flush(self) -> None:
        done = self.loop.create_future()
        self.volume.flush(lambda error: self.loop.call_soon_threadsafe(done.set_result, error))
        assert await done is None


def _volumes_folder(root: Path, say: Say) -> None:
    """It is the user's, and was there for long."""
    (root / "volumes").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")


def _applied_changes(root: Path, say: Say) -> None:
    """The journal may forget what the volume says it has."""

    async def story() -> None:
        rig = _Rig(root)
        rig.write(3, b"a")
        rig.write(60, b"b")
        await rig.apply()
        await rig.volume.sync()
        assert rig.volume.synced_lsn == rig.spool.head_lsn
        say(blocks={3: "a", 60: "b"})

    asyncio.run(story())


def _volume_just_made(root: Path, say: Say) -> None:
    """A process that ends between the making of the file and anything else."""
    (root / "volumes" / "disk.raw").touch(mode=0o600)


def _failure_noted(root: Path, say: Say) -> None:
    from dpac_engine.io import journal_failure_note

    volume = root / "volumes" / "disk.raw"
    volume.touch()
    journal_failure_note.leave(volume, "1" * 32, 7)
    say()


def _check_failure_noted(root: Path, said: Said) -> None:
    from dpac_engine.io import journal_failure_note

    assert journal_failure_note.read(root / "volumes" / "disk.raw", "1" * 32) == 7


def _journal_lost(root: Path, say: Say) -> None:
    """The journal fails with changes in it: the volume takes them, and says that the file is ahead from here on."""
    import errno

    async def story() -> None:
        rig = _Rig(root)
        rig.volume.bypassing = lambda: say(blocks={5: "c"})
        rig.write(5, b"c")
        rig.spool._settle(0, OSError(errno.EIO, "gone"))
        await rig.flush()
        assert rig.volume.bypass

    asyncio.run(story())


def _flushed_without_journal(root: Path, say: Say) -> None:
    async def story() -> None:
        rig = _Rig(root)
        rig.volume.write_through_from_now()
        rig.write(7, b"d")
        await rig.flush()
        say(blocks={7: "d"})

    asyncio.run(story())


def _journal_back(root: Path, say: Say) -> None:
    async def story() -> None:
        rig = _Rig(root)
        rig.volume.write_through_from_now()
        rig.write(6, b"f")
        rig.volume.journalled_again()
        await rig.flush()
        say(blocks={6: "f"})

    asyncio.run(story())


def _detached(root: Path, say: Say) -> None:
    async def story() -> None:
        rig = _Rig(root)
        rig.write(9, b"e")
        signature = await rig.volume.stop()
        assert signature is not None
        say(blocks={9: "e"}, signature=list(signature))

    asyncio.run(story())


def _check_volume(root: Path, said: Said) -> None:
    from dpac_engine.io.members.volume_file import signature_of

    path = root / "volumes" / "disk.raw"
    content = path.read_bytes()
    for block, letter in said["blocks"].items():
        assert content[block * 4096 :][:4096] == letter.encode() * 4096, f"block {block} is gone"
    if "signature" in said:
        found = signature_of(path)
        assert found is not None
        assert list(found) == said["signature"], "the volume looks as if it had been changed while it was detached"


def _changes_of_blocks(blocks: dict[int, bytes]) -> list[Any]:
    """Records as they lie in a spool."""
    from dpac_engine.core import records

    found = []
    for number, (block, letter) in enumerate(blocks.items()):
        payload = letter * 4096
        raw = records.encode_header(
            records.Kind.WRITE, 0, 1, 1, number * 8192, block * 4096, 4096, number + 1, TAG, 1, payload
        )
        header = records.decode_header(memoryview(bytes(raw) + payload), 0)
        assert header is not None
        found.append((header, memoryview(payload)))
    return found


def _set_aside(root: Path, say: Say) -> None:
    from dpac_engine.io.unapplied import set_aside

    set_aside(root / "members" / "1" / "unapplied", _changes_of_blocks({3: b"a", 9: b"b"}))


def _check_aside(root: Path, said: Said) -> None:
    from dpac_engine.io.unapplied import read_aside

    found = [
        (header.offset, bytes(payload[:1])) for header, payload in read_aside(root / "members" / "1" / "unapplied")
    ]
    assert found == [(3 * 4096, b"a"), (9 * 4096, b"b")]


def _taken_back(root: Path, say: Say) -> None:
    """What was set aside goes to the file, once: were it there again, it would be written over what is newer."""
    from dpac_engine.control.member import Member

    async def story() -> None:
        _set_aside(root, say)
        os.setxattr(root, SYNC_ATTRIBUTE, b"")
        rig = _Rig(root)
        aside = root / "members" / "1" / "unapplied"
        member = SimpleNamespace(_aside=aside, _counts=lambda record: True, _unapplied_lsn=None)
        Member._catch_up(member, rig.volume)  # type: ignore[arg-type]
        say(blocks={3: "a", 9: "b"})

    asyncio.run(story())


def _check_taken_back(root: Path, said: Said) -> None:
    _check_volume(root, said)
    assert not (root / "members" / "1" / "unapplied").exists(), "it would be taken once more"


# ---------------------------------------------------------------- state, site, keys, catalogue


def _state_stored(root: Path, say: Say) -> None:
    from dpac_engine.control import group_state
    from dpac_engine.control.group import Group
    from dpac_engine.io.reserved_file import ReservedFile

    (root / "group").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    file = ReservedFile(root / "group" / "state.json")
    group = SimpleNamespace(state=group_state.GroupState(), _state_file=file)
    for lsn in (64, 128, 192):
        group.state.scan_lsn = lsn
        Group._store_state(group)  # type: ignore[arg-type]
        say(lsn=lsn)


def _tracked(root: Path, say: Say) -> None:
    """A leg is tracked twice: the second time its bitmap is there already."""
    from dpac_engine.control.tracking import Tracking

    (root / "group").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    tracking, spool = Tracking(root / "group" / "dirty"), SimpleNamespace(head_lsn=0, read=lambda *_: ())
    for number in range(3):
        assert asyncio.run(tracking.begin("copies", spool, 0, {1: 2**30}))  # type: ignore[arg-type]
        tracking.note(1, [(None, number * 65536, 512, None)])  # type: ignore[list-item]
        asyncio.run(tracking.store())
        say(blocks=number + 1)


def _check_tracked(root: Path, said: Said) -> None:
    from dpac_engine.control.tracking import Tracking

    tracking = Tracking(root / "group" / "dirty")
    tracking.load("copies", True, ())
    assert tracking.dirty_bytes("copies") >= said["blocks"] * 65536, "bits are gone"


def _check_state(root: Path, said: Said) -> None:
    from dpac_engine.control import group_state

    state = group_state.load(root / "group" / "state.json")
    assert state is not None, "the group forgot everything"
    assert state.scan_lsn >= said["lsn"]


def _site_made(root: Path, say: Say) -> None:
    from dpac_engine.control.site import Site, SiteLocks

    data = root / "srv" / "dpac"
    SiteLocks.take(data)
    site = Site.open(data)
    keys = {name: (site.keys / name).read_bytes().hex() for name in ("kek", "signing")}
    say(uid=site.site_uid, token=site.admin_token_file.read_text(), **keys)


def _site_detached(root: Path, say: Say) -> None:
    """`dpac serve --detach` prepares the folder, then the supervisor comes."""
    from dpac_engine.control import serve
    from dpac_engine.control.serve_options import ServeOptions

    serve._await_health = lambda *_: None  # type: ignore[assignment]
    serve.start_detached(ServeOptions(data=str(root / "srv" / "dpac")), ("/bin/true",))


def _old_site(root: Path, say: Say) -> None:
    """A site without its folder of tokens, as an older layout might be."""
    _site_made(root, say)
    data = root / "srv" / "dpac"
    (data / "tokens" / "admin").unlink()
    (data / "tokens").rmdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")


def _check_site(root: Path, said: Said) -> None:
    from dpac_engine.control.site import Site

    site = Site.read(root / "srv" / "dpac")
    assert site.site_uid == said["uid"]
    assert site.admin_token_file.read_text() == said["token"]
    for name in ("kek", "signing"):
        assert (site.keys / name).read_bytes().hex() == said[name]


def _check_site_and_catalogue(root: Path, said: Said) -> None:
    from dpac_engine.control.catalogue_guard import open_whole
    from dpac_engine.control.site import Site

    _check_site(root, said)
    site = Site.read(root / "srv" / "dpac")
    open_whole(site.catalogue_file, site.groups).close()


def _listening(root: Path, say: Say) -> None:
    import socket

    from dpac_engine.control.listening import _describe
    from dpac_engine.control.serve_options import ServeOptions
    from dpac_engine.control.site import Site

    _site_made(root, say)
    with socket.create_server(("127.0.0.1", 0)) as rest:
        _describe(Site.read(root / "srv" / "dpac"), ServeOptions(data=str(root / "srv" / "dpac")), rest, [])
        say(port=rest.getsockname()[1])


def _check_listening(root: Path, said: Said) -> None:
    from dpac_engine.control.listening import _last_port
    from dpac_engine.control.site import Site

    assert _last_port(Site.read(root / "srv" / "dpac").endpoint_file) == said["port"], "REST would listen elsewhere"


def _catalogue_lost(root: Path, say: Say) -> None:
    _site_made(root, say)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    (root / "srv" / "dpac" / "catalogue.sqlite").write_bytes(b"no database" * 1000)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")


def _catalogue_rebuilt(root: Path, say: Say) -> None:
    from datetime import UTC, datetime

    from dpac_engine.control.catalogue_rebuild import rebuild
    from dpac_engine.control.site import Site

    rebuild(Site.read(root / "srv" / "dpac"), lambda _: (), datetime.now(UTC))


def _keyring(root: Path) -> Any:
    from dpac_engine.io.keys import Keyring

    return Keyring(root / "keys")


def _kek(root: Path, say: Say) -> None:
    (root / "keys").mkdir()
    (root / "keys" / "kek").write_bytes(KEK)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")


def _key_made(root: Path, say: Say) -> None:
    keys = _keyring(root)
    key_id = keys.create()
    say(key_id=key_id, key=keys.data_key(key_id).hex())


def _check_key(root: Path, said: Said) -> None:
    assert _keyring(root).data_key(said["key_id"]).hex() == said["key"]


def _escrowed(root: Path, say: Say) -> None:
    keys = _keyring(root)
    mark = keys.export_kek(root / "copy.json", "5" * 32)
    say(copied=mark)


def _check_escrow(root: Path, said: Said) -> None:
    from dpac_engine.io.keys import read_escrow

    assert read_escrow(root / "copy.json") == (KEK, said["copied"])


def _escrow_key_made(root: Path, say: Say) -> None:
    from dpac_engine.io.escrow import PrivateKey

    key = PrivateKey.generate()
    key.write(root / "private.key")
    say(public=key.public)


def _check_escrow_key(root: Path, said: Said) -> None:
    from dpac_engine.io.escrow import PrivateKey

    assert PrivateKey.read(root / "private.key").public == said["public"]


def _kit_written(root: Path, say: Say) -> None:
    from dpac_api.models import FilesystemTargetSpec
    from dpac_engine.control.preseed_kit import PreseedKit

    target = FilesystemTargetSpec(path="/copies")
    kit = PreseedKit(
        target="copies", target_spec=target, shards=[], sizes_bytes={}, wrapped_key="00", plain_key=KEK.hex()
    )
    kit.write(root / "shop.kit")
    say(key=kit.plain_key)


def _check_kit(root: Path, said: Said) -> None:
    from dpac_engine.control.preseed_kit import read_kit

    assert read_kit(root / "shop.kit").plain_key == said["key"]


def _escrow_confirmed(root: Path, say: Say) -> None:
    from dpac_engine.io.keys import fingerprint

    _keyring(root).confirm_escrow(fingerprint(KEK), 42)


def _check_confirmed(root: Path, said: Said) -> None:
    assert _keyring(root).escrow_status().confirmed_ns == 42


def _catalogue(root: Path) -> Any:
    from dpac_engine.control.catalogue import Catalogue

    return Catalogue.open(root / "catalogue.sqlite")


def _request_answered(root: Path, say: Say) -> None:
    from datetime import UTC, datetime

    from dpac_engine.control.catalogue import remember

    catalogue = _catalogue(root)
    for number in range(5):
        with catalogue.write() as session:
            remember(session, f"r{number}", "f", {"number": number}, datetime.now(UTC))
        say(number=number)


def _check_answered(root: Path, said: Said) -> None:
    from dpac_engine.control.catalogue import recall

    with _catalogue(root).read() as session:
        for number in range(said["number"] + 1):
            assert recall(session, f"r{number}", "f") == {"number": number}, (
                f"request {number} was answered and is gone"
            )


def _assigned(root: Path, say: Say) -> None:
    from dpac_engine.control.reconciler import Reconciler
    from tests.processes.backend import assignment

    wanted = assignment("shop", uid="1" * 32)
    reconciler = SimpleNamespace(_folder=lambda uid: root / "groups" / uid)
    Reconciler._write_assignment(reconciler, wanted)  # type: ignore[arg-type]


def _check_assigned(root: Path, said: Said) -> None:
    from dpac_engine.control.assignment import WorkerAssignment

    text = (root / "groups" / ("1" * 32) / "assignment.json").read_text()
    assert WorkerAssignment.model_validate_json(text).name == "shop"


def _drained(root: Path, say: Say) -> None:
    from dpac_engine.control.worker import Worker, _Group
    from tests.processes.backend import assignment, put_assignment

    wanted = assignment("shop", uid="1" * 32)
    (put_assignment(root / "groups", wanted) / "spool").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")

    async def stop() -> None:
        return None

    async def story() -> None:
        worker = SimpleNamespace(_folder=root / "groups", _groups={})
        group = _Group(runtime=SimpleNamespace(stop=stop))  # type: ignore[arg-type]
        await Worker._detach(worker, "1" * 32, group, wanted)  # type: ignore[arg-type]

    asyncio.run(story())


def _check_drained(root: Path, said: Said) -> None:
    from dpac_engine.control.worker import _drained

    assert _drained(root / "groups" / ("1" * 32)), "a group that was let go is taken again"


# ---------------------------------------------------------------- the filesystem store


def _store(root: Path) -> Any:
    from dpac_engine.io.stores.filesystem import FilesystemStore

    return FilesystemStore(root / "target")


def _target(root: Path, say: Say) -> None:
    (root / "target").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")


def _target_added(root: Path, say: Say) -> None:
    from dpac_api.models import FilesystemTargetSpec
    from dpac_engine.control.host_checks import make_target_folder

    make_target_folder(FilesystemTargetSpec(path=str(root / "target")))
    _store(root).create("one", b"1" * 9000)
    say(objects={"one": "1"})


def _object_put(root: Path, say: Say) -> None:
    _store(root).put("g/1/s/segment", b"s" * 9000)
    say(objects={"g/1/s/segment": "s"})


def _object_put_beside(root: Path, say: Say) -> None:
    """Into a folder that is durable already."""
    (root / "target" / "g").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    _store(root).put("g/one", b"1" * 9000)
    say(objects={"g/one": "1"})


def _object_created(root: Path, say: Say) -> None:
    (root / "target" / "m").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    _store(root).create("m/1", b"m" * 9000)
    say(objects={"m/1": "m"})


def _folder_just_made(root: Path, say: Say) -> None:
    """A process that ends between the making of a folder and its sync."""
    (root / "target" / "g").mkdir()


def _object_put_there(root: Path, say: Say) -> None:
    _store(root).put("g/one", b"1" * 9000)
    say(objects={"g/one": "1"})


def _object_deleted(root: Path, say: Say) -> None:
    (root / "target" / "g").mkdir()
    (root / "target" / "g" / "old").write_bytes(b"o")
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    _store(root).delete("g/old")
    say(objects={})


def _check_objects(root: Path, said: Said) -> None:
    store = _store(root)
    assert {key: store.get(key) for key in store.list("")} == {
        key: letter.encode() * 9000 for key, letter in said["objects"].items()
    }


def _tails(root: Path) -> Any:
    from dpac_engine.io.stores.tails import FilesystemTails

    return FilesystemTails(root / "target", "g/1/")


def _tail_written(root: Path, say: Say) -> None:
    tail = _tails(root).open_tail("t/1", SPOOL_FILE_BYTES)
    for at in range(3):
        tail.write(at * 4096, b"t" * 4096)
        say(length=(at + 1) * 4096)


def _check_tail(root: Path, said: Said) -> None:
    content = (root / "target" / "g" / "1" / "t" / "1").read_bytes()
    assert content[: said["length"]] == b"t" * said["length"], "what a synchronous leg acknowledged is gone"


def _spare_tail(root: Path, say: Say) -> None:
    tails = _tails(root)
    tails.prepare(SPOOL_FILE_BYTES)
    assert os.getxattr(tails._spare[1], UNSYNCED_ATTRIBUTE) == b"0", "the first FLUSH in it would wait for its zeroes"


# ---------------------------------------------------------------- directories, restores, mounts


def _index_committed(root: Path, say: Say) -> None:
    from dpac_engine.io.members.tree_index import TreeIndex

    (root / "group").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    index = TreeIndex(root / "group" / "members" / "1" / "index.sqlite")
    index.open()
    for lsn in (64, 128, 192):
        index.orphans.add(lsn.to_bytes(32, "big"))
        index.commit(lsn)
        say(lsn=lsn)


def _check_index(root: Path, said: Said) -> None:
    from dpac_engine.io.members.tree_index import TreeIndex

    index = TreeIndex(root / "group" / "members" / "1" / "index.sqlite")
    index.open()
    assert index.applied_lsn >= said["lsn"], "the index forgot what the journal dropped for its sake"
    assert len(index.orphans) == index.applied_lsn // 64


def _restore(root: Path, to: Path) -> None:
    from dpac_engine.core.entries import Entry, EntryType, digest_of, encode_entry
    from dpac_engine.io.members import tree_restore

    class Libc:
        """FUSE is not told of syncfs(2)."""

        @staticmethod
        def syncfs(_descriptor: int) -> int:
            os.setxattr(root, SYNC_ATTRIBUTE, b"")
            return 0

    tree_restore.ctypes = SimpleNamespace(CDLL=lambda *_, **__: Libc)  # type: ignore[assignment]
    content = b"f" * 9000
    file = Entry(EntryType.FILE, 0o600, os.getuid(), os.getgid(), 10**9, size=9000, chunks=digest_of(content))
    entries = [(b"file", encode_entry(file).value)]
    tree_restore.restore_tree(entries, lambda _: content, to, lambda _: None)


def _tree_restored(root: Path, say: Say) -> None:
    _restore(root, root / "to")


def _tree_restored_in_place(root: Path, say: Say) -> None:
    (root / "to").mkdir()
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    _restore(root, root / "to")


def _check_restored_tree(root: Path, said: Said) -> None:
    assert (root / "to" / "file").read_bytes() == b"f" * 9000


def _restore_at(root: Path) -> Any:
    from dpac_engine.control.restore import Restore
    from dpac_engine.control.restore_journal import RestoreJournal

    it = Restore.__new__(Restore)
    clock = SimpleNamespace(monotonic_ns=lambda: 0)
    it._cast = SimpleNamespace(stage=SimpleNamespace(clock=clock), progress=lambda *_: None)  # type: ignore[assignment]
    it._request = SimpleNamespace(member="disk", to=str(root / "disk.raw"), over=False)  # type: ignore[assignment]
    it._to, it._aside, it._kind, it._started_ns = root / "disk.raw", root / ".aside", "volume", 0
    it._mark, it._ordinal = SimpleNamespace(id="ck-1-1"), 1  # type: ignore[assignment]
    it._content, it._journal = it._aside / "content", RestoreJournal(it._aside / "journal")
    return it


def _restore_begun(root: Path, say: Say) -> None:
    _restore_at(root)._begin("ck-1-1", "copies")


def _check_restore_begun(root: Path, said: Said) -> None:
    assert _restore_at(root).goes_on()


def _volume_restored(root: Path, say: Say) -> None:
    from tests.unit.control_fakes import FakeVolume

    it = _restore_at(root)
    it._image = SimpleNamespace(volume=lambda _: FakeVolume(9000, {0: b"v" * 9000}))
    it._begin("ck-1-1", "copies")
    it._write()
    it._rename()


def _check_restored_volume(root: Path, said: Said) -> None:
    assert (root / "disk.raw").read_bytes() == b"v" * 9000


def _mount_flushed(root: Path, say: Say) -> None:
    from dpac_engine.control.mounts import Mounts
    from dpac_engine.io.nbd.export import Change, ChangeKind
    from tests.unit.test_mounted_volume import StoredImage, content

    async def story() -> None:
        loop = asyncio.get_running_loop()
        mounts = SimpleNamespace(_executor=ThreadPoolExecutor(1))
        image = SimpleNamespace(volume=lambda ordinal: StoredImage(content()))
        opening: Any = SimpleNamespace(folder=root / "mounts" / "1", image=image)
        members: Any = {1: SimpleNamespace(name="disk", kind="volume")}
        opened = await Mounts._open_members(mounts, opening, members)  # type: ignore[arg-type]
        volume: Any = opened["disk"]
        volume.submit([Change(ChangeKind.WRITE, 8192, 4096, memoryview(b"w" * 4096))])
        done = loop.create_future()
        volume.flush(lambda error: loop.call_soon_threadsafe(done.set_result, error))
        assert await done is None

    asyncio.run(story())


def _check_mount(root: Path, said: Said) -> None:
    from dpac_engine.io.mounted_volume import MountedVolume
    from tests.unit.test_mounted_volume import StoredImage, content

    async def story() -> None:
        place, loop = root / "mounts" / "1" / "disk", asyncio.get_running_loop()
        volume = MountedVolume(StoredImage(content()), place, loop, ThreadPoolExecutor(1), "the boot after")
        assert volume.read_blocking(8192, 4096) == b"w" * 4096, "a flushed write to a mount is gone"
        assert volume.read_blocking(12288, 4096) == content()[12288:16384]

    asyncio.run(story())


def _mount_hydrated(root: Path, say: Say) -> None:
    from dpac_engine.io.hydration import Hydration
    from dpac_engine.io.mounted_volume import MountedVolume
    from tests.unit.test_mounted_volume import StoredImage, content

    async def story() -> None:
        place, loop = root / "mounts" / "1" / "disk", asyncio.get_running_loop()
        place.mkdir(parents=True)
        os.setxattr(root, SYNC_ATTRIBUTE, b"")
        volume = MountedVolume(StoredImage(content()), place, loop, ThreadPoolExecutor(1))
        await Hydration("mnt-1/disk", volume, asyncio.Lock()).run()

    asyncio.run(story())


def _check_hydrated(root: Path, said: Said) -> None:
    from dpac_engine.io.mounted_volume import MountedVolume, Zeroes, hydrated_size
    from tests.unit.test_mounted_volume import DEVICE_BYTES, content

    async def story() -> None:
        place, loop = root / "mounts" / "1" / "disk", asyncio.get_running_loop()
        assert hydrated_size(place) == DEVICE_BYTES, "that it needs its target no more is forgotten"
        volume = MountedVolume(Zeroes(DEVICE_BYTES), place, loop, ThreadPoolExecutor(1), "the boot after")
        assert volume.read_blocking(0, DEVICE_BYTES) == content()

    asyncio.run(story())


def _stored_tree() -> Any:
    """A directory with one file, as a target has it."""
    from dpac_engine.core.entries import Entry, EntryType, digest_of, encode_entry
    from tests.unit.test_mounted_volume import content

    data = content()
    chunks = {digest_of(part): part for part in (data[at : at + 2**18] for at in range(0, len(data), 2**18))}
    parts = [digest_of(data[at : at + 2**18]) for at in range(0, len(data), 2**18)]
    entry = Entry(EntryType.FILE, 0o600, os.getuid(), os.getgid(), 1, size=len(data), chunks=b"".join(parts))
    value = encode_entry(entry).value
    return SimpleNamespace(
        paths=lambda: [b"old"],
        entries=lambda: [(b"old", value)],
        read_entry={b"old": value}.__getitem__,
        read_chunk=chunks.__getitem__,
        chunks=lambda: [(digest, len(chunk)) for digest, chunk in chunks.items()],
        stored_bytes=lambda: len(data),
    )


def _mounted_tree(root: Path, boot: str) -> tuple[Any, Any, Any]:
    """(copy, lower, tree) as a mount has them."""
    from dpac_engine.io.mounted_tree.local_copy import LocalCopy
    from dpac_engine.io.mounted_tree.lower import Lower
    from dpac_engine.io.mounted_tree.tree import MountedTree

    copy = LocalCopy(root / "mounts" / "1" / "tree.tree")
    lower = Lower(copy if copy.whole else _stored_tree())
    return copy, lower, MountedTree(lower, copy.folder, boot)


def _tree_synced(root: Path, say: Say) -> None:
    (root / "mounts" / "1").mkdir(parents=True)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    _, _, tree = _mounted_tree(root, "the boot before")
    old = tree.find(b"old")
    tree.open(old)
    tree.write(old, 8192, b"w" * 4096)
    tree.sync(old)
    other = tree.make(b"folder", stat.S_IFDIR | 0o700, os.getuid(), os.getgid())
    new = tree.make(b"folder/new", stat.S_IFREG | 0o600, os.getuid(), os.getgid())
    tree.open(new)
    tree.write(new, 0, b"n" * 5000)
    tree.rename(b"old", b"folder/moved", replace=True)
    tree.sync(new)
    tree.change(other, mode=0o755)


def _check_tree_synced(root: Path, said: Said) -> None:
    from tests.unit.test_mounted_volume import content

    _, _, tree = _mounted_tree(root, "the boot after")
    new, moved = tree.find(b"folder/new"), tree.find(b"folder/moved")
    for node in (new, moved):
        tree.open(node)
    assert tree.read(new, 0, 9999) == b"n" * 5000, "a synced file is gone"
    assert tree.read(moved, 0, 2**20) == content()[:8192] + b"w" * 4096 + content()[12288:], "a synced write is gone"


def _tree_beside(root: Path, say: Say) -> None:
    """A file is written and not synced; a folder is, and with it every name and attribute."""
    (root / "mounts" / "1").mkdir(parents=True)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    _, _, tree = _mounted_tree(root, "the boot before")
    old = tree.find(b"old")
    tree.open(old)
    tree.write(old, 0, b"w" * 4096)
    tree.sync(tree.make(b"folder", stat.S_IFDIR | 0o700, os.getuid(), os.getgid()))


def _check_tree_beside(root: Path, said: Said) -> None:
    from tests.unit.test_mounted_volume import content

    _, _, tree = _mounted_tree(root, "the boot after")
    old = tree.find(b"old")
    tree.open(old)
    found = tree.read(old, 0, 2**20)
    assert found[4096:] == content()[4096:], "what nobody wrote to is gone"
    assert found[:4096] in (content()[:4096], b"w" * 4096)


def _tree_hydrated(root: Path, say: Say) -> None:
    from contextlib import nullcontext

    from dpac_engine.io.mounted_tree.hydration import TreeHydration

    (root / "mounts" / "1").mkdir(parents=True)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    copy, lower, _ = _mounted_tree(root, "the boot before")
    hydration = TreeHydration("mnt-1/tree", _stored_tree(), copy, lower, nullcontext(), lambda: None)
    hydration.start()
    hydration._thread.join()
    assert copy.whole, hydration.problem


def _check_tree_hydrated(root: Path, said: Said) -> None:
    from tests.unit.test_mounted_volume import content

    copy, lower, _ = _mounted_tree(root, "the boot after")
    assert copy.whole, "that it needs its target no more is forgotten"
    assert lower.read(b"old", 0, 2**20) == content()


def _mount_recorded(root: Path, say: Say) -> None:
    from dpac_engine.control.mounts import Mounts
    from dpac_engine.core.checkpoints import Mark, MarkBody

    (root / "mounts").mkdir(parents=True)
    os.setxattr(root, SYNC_ATTRIBUTE, b"")
    mark = Mark(1, 64, 1, MarkBody(1, 1, {}))
    reader = SimpleNamespace(
        refresh=lambda: None,
        resolve=lambda _: mark,
        members_at=lambda _: {},
        refs_of=lambda _: [],
        is_stored=lambda _: True,
        image_of=lambda *_: None,
    )
    mounts = SimpleNamespace(_worker=0, _open_reader=lambda *_: reader)
    mounts._part = partial(Mounts._part, mounts)
    request = SimpleNamespace(group_uid="1" * 32, shards=1, target="copies", checkpoint=mark.id, members=[])
    folder = root / "mounts" / "1"
    Mounts._look_up(mounts, folder, request, None)  # type: ignore[arg-type]
    Mounts._record(mounts, folder, SimpleNamespace(model_dump_json=lambda: "{}"))  # type: ignore[arg-type]


def _check_recorded(root: Path, said: Said) -> None:
    from dpac_engine.control.mount_holds import read_hold

    assert (root / "mounts" / "1" / "mount.json").read_text() == "0\n{}"
    assert read_hold(root / "mounts" / "1") is not None, "compaction may delete what it reads"


SCENARIOS = {
    "flushed records": Scenario((_flushed_records,), _check_records),
    "records of an earlier life": Scenario((_unflushed_records, _found_records_flushed), _check_records),
    "a spare file": Scenario((_spare_made,), _nothing),
    "changes in the volume": Scenario((_volumes_folder, _applied_changes), _check_volume),
    "a volume just made": Scenario((_volumes_folder, _volume_just_made, _applied_changes), _check_volume),
    "a journal that failed": Scenario((_volumes_folder, _journal_lost), _check_volume),
    "a journal's failure, noted beside a volume": Scenario((_volumes_folder, _failure_noted), _check_failure_noted),
    "a FLUSH without a journal": Scenario((_volumes_folder, _flushed_without_journal), _check_volume),
    "what went past a journal that works again": Scenario((_volumes_folder, _journal_back), _check_volume),
    "changes set aside": Scenario((_set_aside,), _check_aside),
    "changes taken back": Scenario((_volumes_folder, _taken_back), _check_taken_back),
    "a detached volume": Scenario((_volumes_folder, _detached), _check_volume),
    "dirty bitmaps": Scenario((_tracked,), _check_tracked),
    "a group's state": Scenario((_state_stored,), _check_state),
    "a new site": Scenario((_site_made,), _check_site_and_catalogue),
    "a detached start": Scenario((_site_detached, _site_made), _check_site),
    "an older site": Scenario((_old_site, _site_made), _check_site),
    "a data key": Scenario((_kek, _key_made), _check_key),
    "an escrow copy": Scenario((_kek, _escrowed), _check_escrow),
    "an escrow key": Scenario((_escrow_key_made,), _check_escrow_key),
    "a kit for pre-seeding": Scenario((_kit_written,), _check_kit),
    "a confirmed escrow": Scenario((_kek, _escrow_confirmed), _check_confirmed),
    "an answered request": Scenario((_request_answered,), _check_answered),
    "where REST listens": Scenario((_listening,), _check_listening),
    "a rebuilt catalogue": Scenario((_catalogue_lost, _catalogue_rebuilt), _check_site_and_catalogue),
    "an assignment": Scenario((_assigned,), _check_assigned),
    "a drained group": Scenario((_drained,), _check_drained),
    "a target added": Scenario((_target_added,), _check_objects),
    "a stored object": Scenario((_target, _object_put), _check_objects),
    "an object beside others": Scenario((_target, _object_put_beside), _check_objects),
    "a created object": Scenario((_target, _object_created), _check_objects),
    "an object in a folder just made": Scenario((_target, _folder_just_made, _object_put_there), _check_objects),
    "a deleted object": Scenario((_target, _object_deleted), _check_objects),
    "a tail at a target": Scenario((_target, _tail_written), _check_tail),
    "a spare tail": Scenario((_target, _spare_tail), _nothing),
    "a directory's index": Scenario((_index_committed,), _check_index),
    "a restored tree": Scenario((_tree_restored,), _check_restored_tree),
    "a tree restored in place": Scenario((_tree_restored_in_place,), _check_restored_tree),
    "a restore under way": Scenario((_restore_begun,), _check_restore_begun),
    "a restored volume": Scenario((_volume_restored,), _check_restored_volume),
    "a FLUSH of a mount": Scenario((_mount_flushed,), _check_mount),
    "a hydrated mount": Scenario((_mount_hydrated,), _check_hydrated),
    "an fsync in a mounted directory": Scenario((_tree_synced,), _check_tree_synced),
    "a file beside a folder that is synced": Scenario((_tree_beside,), _check_tree_beside),
    "a hydrated directory": Scenario((_tree_hydrated,), _check_tree_hydrated),
    "a mount": Scenario((_mount_recorded,), _check_recorded),
}
