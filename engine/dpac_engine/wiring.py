"""The only file that names concrete classes together: it builds the processes of `dpac serve` and the CLI.

Heavy modules are imported where they are used: the supervisor, the worker and the CLI each load only what they need.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpac_api.errors import Unsupported

if TYPE_CHECKING:
    from dpac_api.models import DirectorySpec, LegSpec, S3TargetSpec, TargetSpec, TargetTraffic
    from dpac_api.quantities import Duration
    from dpac_engine.control.assignment import WorkerAssignment
    from dpac_engine.control.catalogue_rebuild import StoredGroups
    from dpac_engine.control.child_process import ChildArguments
    from dpac_engine.control.compaction import Compaction
    from dpac_engine.control.control_process import ControlParts
    from dpac_engine.control.group import Group
    from dpac_engine.control.member_journal import MemberJournal
    from dpac_engine.control.mounts import Mounts
    from dpac_engine.control.preseed_kit import PreseedKit
    from dpac_engine.control.repositories import TargetRecovery
    from dpac_engine.control.site import Site
    from dpac_engine.control.worker_client import WorkerClient
    from dpac_engine.control.worker_process import WorkerParts
    from dpac_engine.core.ports import Store, TailStore
    from dpac_engine.io.blueprints.blueprint import Blueprint
    from dpac_engine.io.keys import Keyring, WritingKeys
    from dpac_engine.io.members.directory import DirectoryMember
    from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
    from dpac_engine.io.stores.counting import Meter, Meters
    from dpac_engine.io.stores.s3 import S3Store
    from dpac_engine.io.stores.s3_locks import S3Locks

READER_RETRY_SECONDS = 20.0
"""Mounts, drills and the like have nobody behind them who would try again."""
SHIPPER_RETRY_SECONDS = 3.0
"""A leg tries again by itself, and shows why: only what passes at once is hidden from it."""


def open_store(
    target: TargetSpec,
    meter: Meter,
    retry_seconds: float = READER_RETRY_SECONDS,
    locked_for: timedelta | None = None,
) -> Store:
    """A target's store, counted; where it is a network away, each call is tried again for `retry_seconds` at most.

    `locked_for`: for how long what is written is locked.
    """
    from dpac_api.models import FilesystemTargetSpec
    from dpac_engine.io.stores.counting import CountingStore
    from dpac_engine.io.stores.filesystem import FilesystemStore
    from dpac_engine.io.stores.prefixed import PrefixedStore
    from dpac_engine.io.stores.retrying import RetryingStore

    if isinstance(target, FilesystemTargetSpec):
        return CountingStore(FilesystemStore(Path(target.path)), meter)
    bucket = _bucket(target, meter, locked_for)
    store = RetryingStore(CountingStore(bucket, meter, bucket.request_count), retry_seconds)
    return PrefixedStore(store, f"{target.prefix}/") if target.prefix else store


def _bucket(target: S3TargetSpec, meter: Meter | None = None, locked_for: timedelta | None = None) -> S3Store:
    """Imported when the first bucket is used: boto3 takes most of a second, and the base install lacks it."""
    try:
        from dpac_engine.io.stores.s3 import S3Store
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore"):
            raise
        raise Unsupported(
            f"The target at {target.location} needs boto3. Install it for the backend, `pip install 'dpac[aws]'`, and "
            "restart it."
        ) from None
    return S3Store(target, locked_for=locked_for, listed=lambda: meter.add(list_requests=1) if meter else None)


def examine_target(target: TargetSpec) -> dict[str, str]:
    """What a target's kind alone can say of it: probe -> `ok`, or what is wrong."""
    from dpac_api.models import S3TargetSpec

    return _bucket(target).examine() if isinstance(target, S3TargetSpec) else {}


def open_repository_store(
    target: TargetSpec,
    key: str,
    meters: Meters,
    retry_seconds: float = READER_RETRY_SECONDS,
    locked_for: timedelta | None = None,
) -> Store:
    """The part of a target that is a group's, or one of its shards', with a meter of its own."""
    from dpac_engine.control.repositories import group_prefix
    from dpac_engine.io.stores.prefixed import PrefixedStore

    meter = meters.of(target.location, key)
    return PrefixedStore(open_store(target, meter, retry_seconds, locked_for), group_prefix(key))


def _locks_objects(target: TargetSpec) -> bool:
    from dpac_api.models import S3TargetSpec

    return isinstance(target, S3TargetSpec) and target.object_lock is not None


def open_locks(target: TargetSpec, group_uid: str, meters: Meters) -> S3Locks:
    """The locks of one group's part of a target; Unsupported if it has none."""
    from dpac_api.models import S3TargetSpec
    from dpac_engine.control.repositories import group_prefix

    if not isinstance(target, S3TargetSpec) or target.object_lock is None:
        raise Unsupported(
            f"`immutable_for` needs a bucket whose target says `object_lock`, and {target.location} is none. Declare it "
            "there, or leave out `immutable_for`."
        )
    meter = meters.of(target.location, group_uid)
    bucket = _bucket(target, meter)
    from dpac_engine.io.stores.s3_locks import S3Locks  # needs boto3, of which `_bucket` tells if it is missing

    prefix = f"{target.prefix}/" if target.prefix else ""
    return S3Locks(bucket, prefix + group_prefix(group_uid), meter)


def latest_lock_end_ns(target: TargetSpec, group_uid: str, meters: Meters) -> int:
    """About when the last lock ends of what a target has of a group; 0 if nothing there is locked."""
    return open_locks(target, group_uid, meters).latest_end_ns() if _locks_objects(target) else 0


def open_tails(target: TargetSpec, group_uid: str) -> TailStore:
    """Where a sync leg appends; Unsupported if the target is none that can be appended to."""
    from dpac_api.models import FilesystemTargetSpec
    from dpac_engine.control.repositories import group_prefix
    from dpac_engine.io.stores.tails import FilesystemTails

    if not isinstance(target, FilesystemTargetSpec):
        raise Unsupported(f"A sync leg needs a file system, and {target.location} is none. Use an async leg to it.")
    return FilesystemTails(Path(target.path), group_prefix(group_uid))


def reader_opener(keyring: Keyring, meters: Meters) -> Callable[[str, TargetSpec], RepositoryReader]:
    """Opens a group's repository at a target for reading."""
    from dpac_engine.control.assignment import group_of
    from dpac_engine.io.repository import RepositoryReader

    return lambda key, target: RepositoryReader(
        open_repository_store(target, key, meters),
        group_of(key)[0],
        keyring.data_key,
        reads_what_it_can=_locks_objects(target),
    )


def sharing_reader_opener(keyring: Keyring, meters: Meters) -> Callable[[str, TargetSpec], RepositoryReader]:
    """The same, with one cache of blocks for all, and each segment's index once for all that use it at a time."""
    from collections import defaultdict
    from weakref import WeakValueDictionary

    from dpac_engine.control.assignment import group_of
    from dpac_engine.io.repository import RepositoryReader
    from dpac_engine.io.stored_segment import BlockCache, StoredSegment

    cache = BlockCache()
    segments: defaultdict[str, WeakValueDictionary[str, StoredSegment]] = defaultdict(WeakValueDictionary)
    return lambda key, target: RepositoryReader(
        open_repository_store(target, key, meters),
        group_of(key)[0],
        keyring.data_key,
        cache,
        segments[target.model_dump_json()],
        reads_what_it_can=_locks_objects(target),
    )


def find_blueprint(name: str) -> Blueprint:
    """The blueprint of a name that the models allow."""
    from dpac_engine.io.blueprints.sqlite import SqliteBlueprint

    return {"sqlite": SqliteBlueprint}[name]()


def build_recovery(keyring: Keyring, meters: Meters) -> TargetRecovery:
    """What control asks of targets."""
    from dpac_engine.control.repositories import TargetRecovery
    from dpac_engine.io.members.tree_restore import restore_tree

    return TargetRecovery(
        lambda target: open_store(target, meters.of(target.location)),
        examine_target,
        reader_opener(keyring, meters),
        writer_opener(keyring, meters, READER_RETRY_SECONDS),
        restore_tree,
        find_blueprint,
        keyring.check_stored,
        lambda target, group_uid: latest_lock_end_ns(target, group_uid, meters),
    )


def writer_opener(keyring: WritingKeys, meters: Meters, retry_seconds: float) -> Callable[..., RepositoryWriter]:
    """Opens a group's repository at a target, to write with one of its data keys, and to lock what is written."""
    from dpac_engine.control.assignment import group_of
    from dpac_engine.core.immutability import locked_for_ns
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.repository import RepositoryWriter

    clock = SystemClock()

    def open_writer(
        key: str, key_id: str, target: TargetSpec, immutable_for: Duration | None = None
    ) -> RepositoryWriter:
        locked_ns = locked_for_ns(int(immutable_for.seconds * 1e9)) if immutable_for else 0
        locked_for = timedelta(microseconds=locked_ns // 1000) if locked_ns else None
        return RepositoryWriter(
            open_repository_store(target, key, meters, retry_seconds, locked_for),
            group_of(key)[0],
            key_id,
            keyring.wrapped(key_id),
            keyring.data_key,
            clock,
            open_locks(target, key, meters) if immutable_for or _locks_objects(target) else None,
        )

    return open_writer


def group_maker(
    site: Site, keyring: Keyring, executor: Executor, meters: Meters
) -> Callable[[WorkerAssignment], Group]:
    """Makes a group's runtime in a worker; call it on the worker's event loop."""
    from dpac_engine.control.compaction import Compaction
    from dpac_engine.control.group import Group, GroupDeps
    from dpac_engine.control.mount_holds import held_segments
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.members.directory import DirectoryMember

    clock = SystemClock()

    open_stored = writer_opener(keyring, meters, SHIPPER_RETRY_SECONDS)

    def open_writer(assignment: WorkerAssignment, leg: LegSpec, target: TargetSpec) -> RepositoryWriter:
        return open_stored(assignment.key, assignment.key_id, target, leg.retention.immutable_for)

    def directory(spec: DirectorySpec, journal: MemberJournal, index_folder: Path) -> DirectoryMember:
        blueprint = find_blueprint(spec.blueprint) if spec.blueprint else None
        return DirectoryMember(Path(spec.path), journal, clock, index_folder, blueprint)

    def compactor(assignment: WorkerAssignment, leg: LegSpec) -> Compaction:
        return Compaction(assignment.journal, leg, lambda: held_segments(site.mounts, assignment.key))

    def tails(assignment: WorkerAssignment, target: TargetSpec) -> TailStore:
        return open_tails(target, assignment.key)

    def traffic(group_uid: str, target: TargetSpec) -> TargetTraffic:
        return meters.of(target.location, group_uid).read()

    @cache
    def peer(worker: int) -> WorkerClient:
        from dpac_engine.control.worker_client import WorkerClient  # a worker without such a group needs no client

        return WorkerClient(site.rpc_socket(worker))

    deps = GroupDeps(
        clock, executor, open_writer, compactor, directory, tails, reader_opener(keyring, meters), peer, traffic
    )
    return lambda assignment: Group(assignment, site.group(assignment.key), deps)


def build_mounts(
    site: Site,
    arguments: ChildArguments,
    keyring: Keyring,
    nbd_uri: Callable[[str], str],
    executor: Executor,
    meters: Meters,
) -> Mounts:
    """The mounts of one worker; `nbd_uri` gives the address of an export by its name."""
    from dpac_engine.control.mounts import Mounts
    from dpac_engine.control.tree_mounts import TreeMounts
    from dpac_engine.control.tree_orders import TreeArguments
    from dpac_engine.io.members.tree_restore import restore_tree

    trees = TreeArguments(str(site.data), arguments.index, arguments.log_files)
    return Mounts(
        arguments.index,
        site.groups,
        site.mounts,
        sharing_reader_opener(keyring, meters),
        restore_tree,
        nbd_uri,
        executor,
        TreeMounts([sys.executable, "-m", "dpac_engine.wiring", "trees", trees.to_json()]),
    )


def run_tree_process(arguments: str) -> int:
    """The process that serves a worker's mounted directories, with its TreeArguments as JSON. Returns its exit status."""
    from dpac_engine.control.site import Site
    from dpac_engine.control.tree_orders import TreeArguments
    from dpac_engine.control.tree_process import run_trees
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.keys import Keyring
    from dpac_engine.io.stores.counting import Meters

    given = TreeArguments.from_json(arguments)
    site = Site.read(Path(given.data))
    open_reader = sharing_reader_opener(Keyring(site.keys), Meters(SystemClock()))
    return run_trees(given, site.mounts, site.run / f"trees-{given.index}.lock", open_reader)


def build_worker(arguments: ChildArguments) -> WorkerParts:
    """What a worker process runs; called in its event loop."""
    from concurrent.futures import ThreadPoolExecutor

    from dpac_engine.control.site import Site
    from dpac_engine.control.worker import Worker
    from dpac_engine.control.worker_process import WorkerParts
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.keys import Keyring
    from dpac_engine.io.stores.counting import Meters

    site = Site.read(Path(arguments.data))
    keyring = Keyring(site.keys)
    executor = ThreadPoolExecutor(thread_name_prefix="io")
    meters = Meters(SystemClock())
    mounts = build_mounts(
        site, arguments, keyring, lambda export: site.nbd_uri(arguments.index, export), executor, meters
    )
    worker = Worker(arguments.index, site.groups, group_maker(site, keyring, executor, meters), mounts, SystemClock())
    return WorkerParts(worker, lambda: executor.shutdown(wait=False, cancel_futures=True))


def load_worker() -> None:
    """Import what `build_worker`, and the groups and mounts it makes, use."""
    from importlib import import_module

    for name in (
        "control.compaction",
        "control.group",
        "control.mounts",
        "control.repositories",
        "control.worker",
        "io.blueprints.sqlite",
        "io.clock",
        "io.keys",
        "io.members.directory",
        "io.members.tree_restore",
        "io.repository",
        "io.stores.counting",
        "io.stores.filesystem",
        "io.stores.prefixed",
        "io.stores.tails",
    ):
        import_module(f"dpac_engine.{name}")


def build_control(arguments: ChildArguments) -> ControlParts:
    """What the control process runs; called in its event loop."""
    from importlib.metadata import version

    from dpac_api.errors import DpacError
    from dpac_api.models import SiteInfo
    from dpac_engine.control.catalogue_groups import Host
    from dpac_engine.control.catalogue_guard import CatalogueGuard
    from dpac_engine.control.control_process import ControlParts
    from dpac_engine.control.export_probe import greet
    from dpac_engine.control.plane import Deps
    from dpac_engine.control.rest import create_app
    from dpac_engine.control.rest_unusable import unusable_app
    from dpac_engine.control.site import Site
    from dpac_engine.control.worker_client import WorkerClient
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.keys import Keyring, SigningKey
    from dpac_engine.io.stores.counting import Meters

    site = Site.read(Path(arguments.data))
    keyring = Keyring(site.keys)
    meters = Meters(SystemClock())
    info = SiteInfo(site_uid=site.site_uid, name=site.name, version=version("dpac"))
    guard = CatalogueGuard(site.catalogue_file, site.groups)
    try:
        catalogue = guard.open()
    except DpacError as error:
        return ControlParts(unusable_app(info, error), guard.outdated)
    app = create_app(
        Deps(
            host=Host(info, site.data, arguments.workers, keyring.create, site.nbd_socket),
            catalogue=catalogue,
            workers=[WorkerClient(site.rpc_socket(index)) for index in range(arguments.workers)],
            recovery=build_recovery(keyring, meters),
            keyring=keyring,
            signer=SigningKey(site.keys),
            clock=SystemClock(),
            admin_token=site.admin_token_file,
            greet=greet,
            crashing=partial(crashing_workers, site.supervisor_file),
            traffic=lambda target: meters.read_all(target.location),
        )
    )
    return ControlParts(app, guard.outdated)


def crashing_workers(report_file: Path) -> dict[int, str]:
    """Workers that the supervisor has to start again and again -> how they ended last."""
    from dpac_engine.control.supervisor_report import SupervisorReport

    report = SupervisorReport.read(report_file)
    children = report.crashing() if report else {}
    return {
        int(name.removeprefix("worker-")): child.last_exit
        for name, child in children.items()
        if name.startswith("worker-")
    }


def run_child(role: str, arguments: str) -> int:
    """A child of the supervisor: `control` or `worker`, and its ChildArguments as JSON; or `trees`, a worker's.

    Returns its exit status.
    """
    from dpac_engine.control.child_process import ChildArguments

    if role == "trees":
        return run_tree_process(arguments)
    if role == "worker":
        from dpac_engine.control.worker_process import run_worker

        return run_worker(ChildArguments.from_json(arguments), build_worker, load_worker)
    from dpac_engine.control.control_process import run_control

    return run_control(ChildArguments.from_json(arguments), build_control)


def stored_groups(site: Site) -> StoredGroups:
    """Finds what a site's groups have said of themselves at a target."""
    from dpac_engine.control.repositories import stored_groups as find
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.keys import Keyring
    from dpac_engine.io.stores.counting import Meters

    keyring, meters = Keyring(site.keys), Meters(SystemClock())
    return lambda target: find(open_store(target, meters.of(target.location)), keyring)


def open_preseed(kit: PreseedKit, shard: WorkerAssignment) -> RepositoryWriter:
    """Writes to a shard's part of a kit's target, with the kit's key."""
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.stores.counting import Meters

    legs = (leg for leg in shard.spec.replication.values() if leg.target == kit.target)
    locked = next((leg.retention.immutable_for for leg in legs), None)
    return writer_opener(kit, Meters(SystemClock()), READER_RETRY_SECONDS)(
        shard.key, shard.key_id, kit.target_spec, locked
    )


def main() -> int:
    """The console script `dpac`: one command; returns its exit status."""
    from dpac_engine.control.cli import main as run
    from dpac_engine.control.commands import session

    session.chosen.stored_groups, session.chosen.open_preseed = stored_groups, open_preseed
    return run()


if __name__ == "__main__":
    sys.exit(run_child(*sys.argv[1:]))
