"""The process that serves the mounted directories of one worker.

A process of its own: what hangs in a target must not hold up the worker's exports. It ends with the worker, whose pipe ends
then, and takes its mounts away before; a worker that comes after mounts them again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dpac_api.errors import DpacError, NotFound, Temporary
from dpac_api.models import TargetSpec
from dpac_engine.control.assignment import shard_key
from dpac_engine.control.logs import log_to
from dpac_engine.control.mount_holds import Hold, read_hold
from dpac_engine.control.tree_orders import Call, Said, TreeArguments, TreeOrder, TreeState, tree_folder
from dpac_engine.core.image import Image, TreeImage
from dpac_engine.core.manifest import MemberState
from dpac_engine.io.mounted_tree.hydration import TreeHydration
from dpac_engine.io.mounted_tree.local_copy import LocalCopy, is_whole
from dpac_engine.io.mounted_tree.lower import Lower
from dpac_engine.io.mounted_tree.mountpoint import detach
from dpac_engine.io.mounted_tree.tree import MountedTree
from dpac_engine.io.overlay_blocks import boot_id
from dpac_engine.io.repository import RepositoryReader

log = logging.getLogger(__name__)

MOUNT_SECONDS_MAX = 30.0
END_SECONDS_MAX = 5.0
TOLD_STEPS = 100
"""A copy's progress is told so many times."""
OpenReader = Callable[[str, TargetSpec], RepositoryReader]


class Unavailable(Exception):
    """No directory can be mounted on this host; says why."""


class _Served:
    """One mounted directory."""

    def __init__(self, order: TreeOrder, folder: Path, tell: Callable[[TreeState], None]) -> None:
        self.order = order
        self.place = folder / order.member
        self.state_folder = folder / tree_folder(order.member)
        self.thread: threading.Thread | None = None
        self.hydration: TreeHydration | None = None
        self.leaving = False
        self.problem = self.failure = ""
        self._tell = tell
        self._told: tuple[int, str] | None = None

    def changed(self, *, again: bool = False) -> None:
        """Tell the worker, if it is worth it."""
        state = self._state()
        step = (int((state.fraction or 0) * TOLD_STEPS), state.problem)
        if step != self._told or again:
            self._told = step
            self._tell(state)

    def _state(self) -> TreeState:
        whole = is_whole(self.state_folder)
        fraction = 1.0 if whole else self.hydration.fraction if self.hydration else None
        problem = self.problem or (self.hydration.problem if self.hydration else "")
        order = self.order
        return TreeState(mount_id=order.mount_id, member=order.member, fraction=fraction, whole=whole, problem=problem)

    def unreadable(self, message: str) -> None:
        """The checkpoint could not be read for a client."""
        if message != self.failure:
            log.error("%s/%s: %s", self.order.mount_id, self.order.member, message)
        self.failure = message


class TreeServer:
    """The mounts of the process. Its methods block; safe for threads."""

    def __init__(self, mounts: Path, open_reader: OpenReader, tell: Callable[[TreeState], None]) -> None:
        """`mounts`: the folder of all mounts."""
        self._mounts = mounts
        self._open_reader = open_reader
        self._tell = tell
        self._served: dict[tuple[str, str], _Served] = {}
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._boot = boot_id()

    def mount(self, order: TreeOrder) -> None:
        """Mount; returns when it can be used. Unavailable, or an error of the one tree."""
        try:
            from dpac_engine.io.mounted_tree.face import Face, serve
        except (ImportError, OSError) as error:
            raise Unavailable(f"mfusepy or libfuse3 is missing ({error})") from error
        key = order.mount_id, order.member
        if (there := self._served.get(key)) is not None and not there.problem:
            there.changed(again=True)
            return
        served = _Served(order, self._mounts / order.mount_id, self._tell)
        detach(served.place)  # of an earlier process that did not come to it
        served.place.mkdir(mode=0o700, exist_ok=True)
        copy = LocalCopy(served.state_folder)
        image = None if copy.whole else self._image(order)
        lower = Lower(copy if image is None else image)
        tree = MountedTree(lower, served.state_folder, self._boot)
        if image is not None and order.hydrate:
            name, turn = f"{order.mount_id}/{order.member}", self._turns[order.target.location]
            served.hydration = TreeHydration(name, image, copy, lower, turn, served.changed)
        face = Face(tree, served.unreadable)
        failed = threading.Event()

        def run() -> None:
            try:
                serve(face, str(served.place))
            except RuntimeError:
                failed.set()
            finally:
                face.ready.set()
                self._ended(served, tree, copy)

        served.thread = threading.Thread(target=run, name=f"mount {order.mount_id}", daemon=True)
        served.thread.start()
        if not face.ready.wait(MOUNT_SECONDS_MAX) or failed.is_set():
            served.leaving = True
            raise Unavailable("FUSE cannot be used here: /dev/fuse or fusermount3 is missing, or it is not permitted")
        self._served[key] = served
        if served.hydration is not None:
            served.hydration.start()
        served.changed()

    def _image(self, order: TreeOrder) -> TreeImage:
        """What the checkpoint holds: of the segments that the mount holds, or by looking for it if it holds none."""
        held = read_hold(self._mounts / order.mount_id)
        for image, members in self._held(order, held) if held is not None else self._sought(order):
            found = next((ordinal for ordinal, member in members.items() if member.name == order.member), None)
            if found is not None:
                return image.tree(found)
        raise NotFound(f"Checkpoint {order.checkpoint} does not hold {order.member}. Unmount {order.mount_id}.")

    def _held(self, order: TreeOrder, held: Hold) -> Iterator[tuple[Image, Mapping[int, MemberState]]]:
        """Each shard's part, of the segments that the mount holds."""
        for part in (held, *held.others):
            reader = self._open_reader(part.group_uid, order.target)
            yield reader.image_of(part.segments, part.lsn), part.members

    def _sought(self, order: TreeOrder) -> Iterator[tuple[Image, Mapping[int, MemberState]]]:
        for shard in range(order.shards):
            reader = self._open_reader(shard_key(order.group_uid, shard), order.target)
            reader.refresh()
            mark = reader.resolve(order.checkpoint)
            lsn = order.lsn if order.shards == 1 else mark.lsn
            yield reader.image_of(reader.refs_of(mark), lsn), reader.members_at(mark)

    def _ended(self, served: _Served, tree: MountedTree, copy: LocalCopy) -> None:
        if not served.leaving:
            served.problem = f"{served.place} was unmounted by somebody else. `dpac unmount {served.order.mount_id}`, and mount again."
            log.error(served.problem)
            served.changed()
        if served.hydration is not None:
            served.hydration.stop()
        tree.close()
        copy.close()

    def unmount(self, mount_id: str) -> None:
        """Take every directory of a mount away; whoever has a file open keeps that until it is closed."""
        leaving = [self._served.pop(key) for key in list(self._served) if key[0] == mount_id]
        for served in leaving:
            served.leaving = True
            try:
                detach(served.place)
            except OSError as error:
                raise Temporary(f"{error}. Try again, or unmount it by hand.") from error
            if served.hydration is not None:
                served.hydration.stop()
        for served in leaving:
            if served.thread is not None:
                served.thread.join(END_SECONDS_MAX)

    def close(self) -> None:
        """Take every mount away; does not wait for anybody."""
        for served in list(self._served.values()):
            served.leaving = True
            try:
                detach(served.place)
            except OSError as error:
                log.error("%s", error)


def run_trees(arguments: TreeArguments, mounts: Path, lock: Path, open_reader: OpenReader) -> int:
    """Serve until the worker's pipe ends. `lock`: one such process at a time works for a worker."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # the worker ends it; libfuse would take them for itself
        signal.signal(number, lambda *_: None)
    log_to(f"trees-{arguments.index}", Path(arguments.data) / "log" if arguments.log_files else None)
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writing = threading.Lock()

        def say(said: Said) -> None:
            line = said.model_dump_json(exclude_defaults=True) + "\n"
            try:
                with writing:
                    os.write(sys.stdout.fileno(), line.encode())
            except OSError:
                pass  # the worker is gone, and this process is about to end

        server = TreeServer(mounts, open_reader, lambda state: say(Said(state=state)))
        for line in sys.stdin:
            call = Call.model_validate_json(line)
            threading.Thread(target=_answer, args=(server, call, say), name=call.verb, daemon=True).start()
        server.close()
        os._exit(0)  # threads may hang in a target


def _answer(server: TreeServer, call: Call, say: Callable[[Said], None]) -> None:
    try:
        if call.order is not None:
            server.mount(call.order)
        else:
            server.unmount(call.mount_id)
    except Unavailable as why:
        say(Said(answers=call.number, unavailable=str(why)))
    except DpacError as error:
        say(Said(answers=call.number, error=error.to_wire()))
    except Exception as error:
        log.exception("%s of %s failed", call.verb, call.mount_id)
        say(Said(answers=call.number, error=DpacError(f"The {call.verb} failed: {error}. The log has more.").to_wire()))
    else:
        say(Said(answers=call.number))
