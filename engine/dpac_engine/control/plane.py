"""The control plane of one site: its parts put together, and the verbs that need more than one of them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, DpacError, Invalid, NotFound, Temporary, Unrecoverable
from dpac_api.models import (
    Checkpoint,
    CheckpointRequest,
    GroupStatus,
    HoldRequest,
    Mount,
    MountRequest,
    Operation,
    OperationStep,
    Phase,
    S3TargetSpec,
    Target,
    TargetCheck,
    TargetSpec,
    TargetTraffic,
    TargetUsage,
)
from dpac_engine.control import catalogue_operations as journal
from dpac_engine.control.auth import Authenticator
from dpac_engine.control.catalogue import Catalogue, recall, remember, utc
from dpac_engine.control.catalogue_groups import Host, OnDestroy, delete_group, group_row, where_recovery_points_lie
from dpac_engine.control.catalogue_schema import GroupRow, MountRow, OperationRow
from dpac_engine.control.catalogue_targets import group_uids_at, list_targets, target_spec
from dpac_engine.control.drill import Drill
from dpac_engine.control.moments import moment, nanoseconds
from dpac_engine.control.observation import observe, with_crashing, worker_status
from dpac_engine.control.operations import Operations, RunMaker, Stage
from dpac_engine.control.reconciler import RETRY_SECONDS, Reconciler
from dpac_engine.control.recovery import Keyring, Recovery, Signer
from dpac_engine.control.restore_in_place import restoring
from dpac_engine.control.space_ledger import SpaceLedger
from dpac_engine.control.timeline import GroupView, Timeline, view_active_groups, view_group
from dpac_engine.control.verify import Verify
from dpac_engine.control.worker_api import HoldChange, HoldOutcome, MountStates, WorkerApi, WorkerMount
from dpac_engine.core.costs import monthly_cost
from dpac_engine.core.ports import Clock

_log = logging.getLogger(__name__)
APPLY_SECONDS = 5.0
"""How long a put or delete waits for the worker's first attempt, so that exports exist when `pulumi up` returns."""
STATUSES_AT_ONCE = 32
KINDS: dict[str, RunMaker] = {"Drill": Drill, "Restore": restoring, "Verify": Verify}


@dataclass(frozen=True)
class Deps:
    """What the control plane is given."""

    host: Host
    catalogue: Catalogue
    workers: Sequence[WorkerApi]
    recovery: Recovery
    keyring: Keyring
    signer: Signer
    clock: Clock
    admin_token: Path
    """The file whose content is accepted as an admin token."""
    greet: Callable[[str], None]
    """Raises Temporary unless an NBD server greets at the URI."""
    crashing: Callable[[], Mapping[int, str]] = dict
    """Workers that die again and again -> how they ended last."""
    traffic: Callable[[TargetSpec], Sequence[TargetTraffic]] = lambda _target: ()
    """What control itself asked of a target: checks, drills, restores, verification."""
    apply_seconds: float = APPLY_SECONDS
    retry_seconds: Sequence[float] = RETRY_SECONDS


@dataclass(frozen=True)
class Request:
    """A changing request's identity."""

    id: str
    fingerprint: str


class Plane:
    """One site's control plane."""

    def __init__(self, deps: Deps) -> None:
        self.host = deps.host
        self.catalogue = deps.catalogue
        self.recovery = deps.recovery
        self._deps = deps
        self.auth = Authenticator(deps.catalogue, deps.admin_token)
        self.timeline = Timeline(deps.recovery, deps.clock)
        self.space = SpaceLedger(self.timeline.space, self.now)
        self.reconciler = Reconciler(
            deps.catalogue, deps.host, deps.workers, deps.recovery, deps.clock, deps.retry_seconds
        )
        self.operations = Operations(
            Stage(
                deps.catalogue,
                deps.host,
                deps.workers,
                deps.recovery,
                self.timeline,
                deps.signer,
                deps.clock,
                deps.greet,
            ),
            KINDS,
        )
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up what an earlier process left unfinished."""
        await self.operations.start()
        await self.reconciler.start()
        self._background.add(asyncio.create_task(self.space.keep(self._active_groups), name="space"))

    async def stop(self) -> None:
        """Stop; the data path goes on."""
        for task in self._background:
            task.cancel()
        await self.reconciler.stop()
        await self.operations.stop()
        self.catalogue.close()

    def now(self) -> datetime:
        """The present moment."""
        return utc(self._deps.clock.now_ns())

    # -------------------------------------------------------------- transactions

    async def read(self, question: Callable[[Session], Any]) -> Any:
        """Ask the catalogue, off the event loop."""

        def ask() -> Any:
            with self.catalogue.read() as session:
                return question(session)

        return await asyncio.to_thread(ask)

    async def change(self, request: Request, act: Callable[[Session], dict[str, Any]]) -> dict[str, Any]:
        """Change the catalogue once for this request; its retry gets the first answer."""

        def once() -> dict[str, Any]:
            with self.catalogue.write() as session:
                answer = recall(session, request.id, request.fingerprint)
                if answer is None:
                    answer = act(session)
                    remember(session, request.id, request.fingerprint, answer, self.now())
                return answer

        return await asyncio.to_thread(once)

    async def once(self, request: Request, act: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Do something outside the catalogue once for this request; a retry meanwhile waits for the first one."""
        turn = self._turns.get(request.id)
        if turn is None:
            turn = self._turns[request.id] = asyncio.Lock()  # lives as long as somebody waits for it
        async with turn:
            answer = await self.read(lambda session: recall(session, request.id, request.fingerprint))
            if answer is None:
                done = await act()
                answer = await self.change(request, lambda _: done)
            return dict(answer)

    # -------------------------------------------------------------- groups

    async def view(self, name: str, *, retained: bool = True) -> GroupView:
        """A group for recovery."""
        view: GroupView = await self.read(lambda session: view_group(session, name, retained=retained))
        return view

    async def status(self, name: str) -> GroupStatus:
        """What changes about a group by itself."""
        return await self._observe(await self.view(name, retained=False))

    async def _observe(self, group: GroupView) -> GroupStatus:
        problem = self.reconciler.problems.get(group.uid)
        damages = await asyncio.to_thread(self.timeline.present_damages, group) if group.damages else {}
        status = await observe(group, self._deps.workers, self._deps.keyring, problem, damages, self.now())
        status = self.space.told(group, status)
        for _, worker in group.shards:
            if (last_exit := self._deps.crashing().get(worker)) is not None:
                status = with_crashing(status, worker, last_exit, self.now())
        return status

    async def settle(self, name: str) -> None:
        """Give the worker a moment to take up what was just declared."""
        uid = await self.read(lambda session: session.scalar(select(GroupRow.uid).where(GroupRow.name == name)))
        if uid is not None:
            await self.reconciler.attempt(uid, self._deps.apply_seconds)

    async def delete_group(self, request: Request, name: str, on_destroy: OnDestroy | None) -> None:
        """Stop protecting a group; a purge is refused before anything changes if a target is out of reach, or locks it."""
        replayed = await self.read(lambda session: recall(session, request.id, request.fingerprint))
        if replayed is None:
            await asyncio.to_thread(self._check_purge, name, on_destroy)

        def delete(session: Session) -> dict[str, Any]:
            return {"uid": delete_group(session, name, on_destroy, self.now()).uid}

        uid = (await self.change(request, delete))["uid"]
        self.timeline.forget(uid)
        await self.reconciler.attempt(uid, self._deps.apply_seconds)

    def _check_purge(self, name: str, on_destroy: OnDestroy | None) -> None:
        with self.catalogue.read() as session:
            row = group_row(session, name, retained=on_destroy in ("expire", "purge"))
            places = where_recovery_points_lie(session, row)
            if (on_destroy or row.spec["on_destroy"]) != "purge":
                return
            group = view_group(session, name)
        for target, spec in places.items():
            bad = [f"{probe}: {what}" for probe, what in self.recovery.probe(spec).items() if what != "ok"]
            if bad:
                raise Temporary(
                    f"The group {name!r} cannot be purged while its target {target!r} is out of reach ({'; '.join(bad)}). "
                    "Nothing was changed. Bring the target back, or delete with on_destroy=retain."
                )
            until = self.recovery.locked_until(spec, row.uid)
            if until is not None and until > self.now():
                raise Conflict(
                    f"The group {name!r} cannot be purged: its recovery points at target {target!r} are locked until "
                    f"{until:%Y-%m-%d %H:%M:%S}Z (`immutable_for`). Nothing was changed. Delete with on_destroy=expire, which "
                    "purges them once the locks have ended, or with on_destroy=retain.",
                    property_path="on_destroy",
                )
        held = {checkpoint for ids in self.timeline.held(group).values() for checkpoint in ids}
        if held:
            raise Conflict(
                f"Checkpoints of the group {name!r} are held: {', '.join(sorted(held))}. Nothing was changed. Release them first "
                f"(`dpac release {name} CHECKPOINT`), or delete with on_destroy=retain."
            )

    # -------------------------------------------------------------- holds

    async def hold(self, name: str, request: HoldRequest) -> Checkpoint:
        """Hold the checkpoint that a selector means, at every target that has it."""
        group = await self.view(name)
        until_ns = self._until_ns(request.until, "until")
        _, mark, _ = await asyncio.to_thread(self.timeline.resolve, group, request.checkpoint, None)
        change = self._held(mark.id, [mark.lsn, *mark.other_lsns], until_ns, request.reason)
        if not await self._change_hold(group, change):
            raise Unrecoverable(f"The checkpoint {mark.id} went while it was to be held. Choose a newer one.")
        return await asyncio.to_thread(self.timeline.checkpoint, group, mark.id)

    def _until_ns(self, until: datetime | None, name: str) -> int:
        """The stamp at which a hold ends; 0: never."""
        if until is None:
            return 0
        if (until_ns := nanoseconds(until.astimezone(UTC))) <= self._deps.clock.now_ns():
            raise Invalid(f"{name} ({until.astimezone(UTC).isoformat()}) is over already.", property_path=name)
        return until_ns

    def _held(self, checkpoint: str, lsns: Sequence[int], until_ns: int, reason: str) -> HoldChange:
        return HoldChange(
            checkpoint=checkpoint,
            held=True,
            lsn=lsns[0],
            other_lsns=tuple(lsns[1:]),
            since_ns=self._deps.clock.now_ns(),
            until_ns=until_ns,
            reason=reason,
        )

    async def release(self, name: str, checkpoint: str) -> None:
        """Hold a checkpoint no longer. NotFound if it is not held anywhere."""
        group = await self.view(name)
        held = await asyncio.to_thread(self.timeline.held, group)
        if not any(checkpoint in ids for ids in held.values()):
            there = ", ".join(sorted({found for ids in held.values() for found in ids})) or "none"
            raise NotFound(f"No target of the group {name!r} holds {checkpoint} (held are: {there}).")
        await self._change_hold(group, HoldChange(checkpoint=checkpoint, held=False))

    async def _change_hold(self, group: GroupView, change: HoldChange) -> list[str]:
        """The targets at which it was done. Temporary if it could not be at one that may have the checkpoint."""
        active = await self.read(lambda session: group_row(session, group.name, retained=True).lifecycle == "active")
        outcome = HoldOutcome(done=[], lacking=[], failed={})
        if active and group.spec.replication:
            outcome = await self._change_hold_in_shards(group, change)
        done, failed = list(outcome.done), dict(outcome.failed)
        written = {leg.target for leg in group.spec.replication.values()} if active else set()
        for target in [name for name in group.targets if name not in written]:  # nobody writes there any more
            try:
                for (key, _), own in zip(group.shards, change.of_shards(len(group.shards)), strict=True):
                    await asyncio.to_thread(self.recovery.change_hold, group.targets[target], key, group.key_id, own)
                done.append(target)
            except Unrecoverable:
                continue
            except DpacError as cause:
                failed[target] = cause.message
        if failed:
            what = "held" if change.held else "released"
            raise Temporary(
                f"The checkpoint {change.checkpoint} was {what} at {', '.join(done) or 'no target'}, but could not be at "
                + "; ".join(f"{target} ({why.rstrip('.')})" for target, why in failed.items())
                + ". Do it again once that target answers."
            )
        return done

    async def _change_hold_in_shards(self, group: GroupView, change: HoldChange) -> HoldOutcome:
        """Done at a target is what is done there in every shard: one that lacks the checkpoint, or failed, tells for all."""
        outcomes = [
            await self.worker(worker).change_hold(key, own)
            for (key, worker), own in zip(group.shards, change.of_shards(len(group.shards)), strict=True)
        ]
        failed = {target: why for outcome in outcomes for target, why in outcome.failed.items()}
        lacking = {target for outcome in outcomes for target in outcome.lacking} - set(failed)
        done = [target for target in outcomes[0].done if target not in failed and target not in lacking]
        return HoldOutcome(done=done, lacking=sorted(lacking), failed=failed)

    # -------------------------------------------------------------- targets

    async def retarget(self, name: str) -> None:
        """Tell the workers how a target is reached now."""
        for uid in await self.read(lambda session: group_uids_at(session, name)):
            self.reconciler.nudge(uid)

    async def check_target(self, name: str) -> TargetCheck:
        """Probe a target."""
        spec: TargetSpec | None = await self.read(lambda session: target_spec(session, name))
        if spec is None:
            raise NotFound(f"There is no target {name!r} on this site.")
        checks = await asyncio.to_thread(self.recovery.probe, spec)
        return TargetCheck(target=name, ok=all(what == "ok" for what in checks.values()), checks=checks)

    async def target_usages(self, statuses: Mapping[str, GroupStatus]) -> list[TargetUsage]:
        """What each declared target holds and how it is used, for statuses of all groups."""
        targets: list[Target] = await self.read(lambda session: list_targets(session, self.host.site.site_uid))
        return [self._usage(target, statuses) for target in targets]

    def _usage(self, target: Target, statuses: Mapping[str, GroupStatus]) -> TargetUsage:
        legs = [leg for status in statuses.values() for leg in status.legs.values() if leg.target == target.name]
        traffic = [*(leg.traffic for leg in legs if leg.traffic), *self._deps.traffic(target.spec)]
        stored_bytes = sum(leg.stored_bytes for leg in legs)
        spec, now = target.spec, self.now()
        return TargetUsage(
            target=target.name,
            stored_bytes=stored_bytes,
            traffic=reduce(TargetTraffic.plus, traffic, TargetTraffic(since=now)),
            monthly_cost=monthly_cost(spec, stored_bytes, traffic, now) if isinstance(spec, S3TargetSpec) else None,
        )

    # -------------------------------------------------------------- checkpoints

    async def with_locks(self, group: GroupView, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints with what is known of how long each target keeps them locked."""
        if not any(leg.retention.immutable_for for leg in group.spec.replication.values()):
            return list(found)
        try:
            legs = (await worker_status(group, self._deps.workers)).legs.values()
        except (Temporary, NotFound):
            return list(found)  # retained, or its worker is being started: nobody knows
        until = {leg.target: leg.immutable_until for leg in legs}
        return [
            checkpoint.model_copy(
                update={
                    "targets": {
                        name: at.model_copy(update={"locked_until": until.get(name)})
                        for name, at in checkpoint.targets.items()
                    }
                }
            )
            for checkpoint in found
        ]

    async def take_checkpoint(self, name: str, request: CheckpointRequest) -> Checkpoint:
        """Mark the group now, and hold the checkpoint if asked to; journalled as an operation."""
        group = await self.view(name, retained=False)
        until_ns = self._until_ns(request.hold_until, "hold_until")
        step = "quiesce, mark, release" if request.app else "mark"

        def begin(session: Session) -> Operation:
            body = request.model_dump(mode="json")
            operation = journal.add_operation(session, "Checkpoint", group, body, [step], self.now())
            journal.note_step(session, operation.id, 0, OperationStep(name=step, state="running", started=self.now()))
            return operation

        operation = await self.write(begin)
        try:
            checkpoint = await self.worker(group.worker).checkpoint(group.uid, request)
            if request.hold:
                checkpoint = await self._hold_new(group, checkpoint, until_ns, request.hold_reason)
        except BaseException as cause:
            message = cause.message if isinstance(cause, DpacError) else f"It was interrupted: {type(cause).__name__}."
            await self.end(operation, Phase.FAILED, {}, message)
            raise
        await self.end(operation, Phase.SUCCEEDED, checkpoint.model_dump(mode="json"), None)
        self._ship_soon(group)
        return checkpoint

    async def _hold_new(self, group: GroupView, taken: Checkpoint, until_ns: int, reason: str) -> Checkpoint:
        """Hold a checkpoint before any target has it, so that none can drop it."""
        change = self._held(taken.id, [taken.lsn[uid] for uid in group.shard_uids], until_ns, reason)
        if not await self._change_hold(group, change):
            raise Unrecoverable(
                f"The checkpoint {taken.id} was taken, but no target has anything of the group yet that could be held. Wait "
                "until the group is seeded (`dpac status`), and take another one."
            )
        until = moment(until_ns) if until_ns else None
        return taken.model_copy(update={"held": True, "held_until": until, "held_reason": reason})

    def _ship_soon(self, group: GroupView) -> None:
        """Somebody asked for this checkpoint, so it goes to the targets now, not with the next change."""

        async def ship() -> None:
            try:
                await asyncio.gather(*(self.worker(worker).ship(key) for key, worker in group.shards))
            except DpacError as cause:  # the legs go on by themselves
                _log.info("group %s was not shipped at once: %s", group.name, cause.message)

        task = asyncio.create_task(ship(), name=f"ship {group.name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def end(self, operation: Operation, phase: Phase, result: dict[str, Any], error: str | None) -> None:
        """Journal the end of an operation of one step."""

        def end(session: Session) -> None:
            state = "failed" if error else "done"
            step = operation.steps[0].model_copy(
                update={"state": state, "message": error or "", "finished": self.now()}
            )
            journal.note_step(session, operation.id, 0, step)
            journal.finish_operation(session, operation.id, phase, result, error, self.now())

        await self.write(end)

    async def write(self, act: Callable[[Session], Any]) -> Any:
        """Change the catalogue, off the event loop."""

        def write() -> Any:
            with self.catalogue.write() as session:
                return act(session)

        return await asyncio.to_thread(write)

    def worker(self, index: int) -> WorkerApi:
        """The worker of an index; Temporary if it does not run here."""
        if index >= len(self._deps.workers):
            raise Temporary(f"Worker {index} does not run here. Start the backend with --workers {index + 1} or more.")
        return self._deps.workers[index]

    # -------------------------------------------------------------- operations

    async def begin(
        self,
        request: Request,
        name: str,
        kind: journal.OperationKind,
        body: dict[str, Any],
        check: Callable[[Session, GroupView], None],
    ) -> Operation:
        """Journal an operation with its plan, and start it."""

        def add(session: Session) -> dict[str, Any]:
            group = view_group(session, name)
            check(session, group)
            draft = Operation.model_validate(
                {
                    "id": "op-draft",
                    "kind": kind,
                    "group": name,
                    "phase": "Pending",
                    "request": _bare(body),
                    "created": self.now(),
                }
            )
            steps = self.operations.plan(kind, group, draft)
            operation = journal.add_operation(session, kind, group, body, steps, self.now())
            fresh.append(operation.id)
            return operation.model_dump(mode="json")

        fresh: list[str] = []
        answer = await self.change(request, add)
        for operation_id in fresh:
            self.operations.submit(operation_id)
        return Operation.model_validate(answer)

    # -------------------------------------------------------------- mounts

    async def mounts(self) -> list[Mount]:
        """What is mounted, oldest first, with what its workers say of it."""
        found: list[tuple[int, Mount]] = await self.read(journal.list_mounts)
        indexes = sorted({index for index, _ in found})
        told = dict(zip(indexes, await asyncio.gather(*map(self._mount_states, indexes)), strict=True))
        return [mount.model_copy(update=_update(told[index], mount.id)) for index, mount in found]

    async def _mount_states(self, worker: int) -> MountStates | DpacError:
        try:
            return await self.worker(worker).mount_states()
        except DpacError as error:
            return error

    async def mount(self, request: Request, name: str, body: MountRequest) -> Mount:
        """Open a checkpoint for use. The mount's id comes from the request's, so that a retry never makes a second one."""
        group = await self.view(name)
        target, mark, note = await asyncio.to_thread(self.timeline.resolve, group, body.at, body.target)
        members = await asyncio.to_thread(self._members_to_mount, group, target, mark, body.member)
        worker = self.worker(group.worker)
        mount_id = "mnt-" + hashlib.blake2b(request.id.encode(), digest_size=6).hexdigest()
        if await self.write(lambda session: self._intend_mount(session, mount_id, group)):
            with suppress(NotFound):  # a try that was interrupted may have mounted it
                await worker.unmount(mount_id)
        try:
            mount = await worker.mount(
                WorkerMount(
                    mount_id=mount_id,
                    group_uid=group.uid,
                    target=target,
                    checkpoint=mark.id,
                    members=members,
                    shards=len(group.shards),
                    hydrate=body.hydrate,
                )
            )
        except DpacError as cause:
            if not isinstance(cause, Temporary):
                await self.write(lambda session: session.delete(session.get_one(MountRow, mount_id)))
            raise
        mount = mount.model_copy(update={"note": " ".join(filter(None, [note, mount.note]))})
        await self.write(lambda session: _note_mount(session, mount_id, mount))
        return mount

    def _members_to_mount(self, group: GroupView, target: str, mark: Any, member: str | None) -> list[str]:
        held = self.timeline.ask(group, target, lambda repository: repository.members_at(mark))
        names = sorted(view.name for view in held.values())
        if member is not None and member not in names:
            raise Invalid(
                f"Checkpoint {mark.id} does not hold the member {member!r} (it holds: {', '.join(names) or 'none'}).",
                property_path="member",
            )
        return names if member is None else [member]

    def _intend_mount(self, session: Session, mount_id: str, group: GroupView) -> bool:
        """Note that a mount is about to be made; True if that was noted before."""
        if session.get(MountRow, mount_id) is not None:
            return True
        session.add(MountRow(id=mount_id, group_uid=group.uid, worker=group.worker, mount=None, created=self.now()))
        return False

    async def unmount(self, mount_id: str) -> None:
        """Close a mount and drop what was written to it."""
        index = await self.read(lambda session: journal.mount_row(session, mount_id).worker)
        with suppress(NotFound):
            await self.worker(index).unmount(mount_id)
        await self.write(lambda session: session.delete(journal.mount_row(session, mount_id)))

    # -------------------------------------------------------------- metrics

    async def statuses(self) -> dict[str, GroupStatus]:
        """Every active group's status, asked for side by side."""

        slots = asyncio.Semaphore(STATUSES_AT_ONCE)

        async def one(group: GroupView) -> tuple[str, GroupStatus]:
            async with slots:
                return group.name, await self._observe(group)

        return dict(await asyncio.gather(*(one(group) for group in await self._active_groups())))

    async def _active_groups(self) -> list[GroupView]:
        groups: list[GroupView] = await self.read(view_active_groups)
        return groups

    async def operation_counts(self) -> Counter[tuple[str, str]]:
        """(kind, phase) -> how many operations the journal has."""
        query = select(OperationRow.kind, OperationRow.phase, func.count()).group_by(
            OperationRow.kind, OperationRow.phase
        )
        rows = await self.read(lambda session: session.execute(query).all())
        return Counter({(kind, phase): count for kind, phase, count in rows})


def _bare(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "request_id"}


def _update(told: MountStates | DpacError, mount_id: str) -> dict[str, Any]:
    if isinstance(told, DpacError):
        return {"problem": told.message}
    state = next((state for state in told.mounts if state.mount_id == mount_id), None)
    if state is None:
        return {"problem": "The worker does not serve it yet. It opens it again at its start; try again in a moment."}
    return {"hydrated_fraction": state.hydrated_fraction, "problem": state.problem}


def _note_mount(session: Session, mount_id: str, mount: Mount) -> None:
    journal.mount_row(session, mount_id).mount = mount.model_dump(mode="json")
