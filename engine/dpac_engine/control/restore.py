"""Restore: write one member, as it was at a checkpoint, to a new path. Whole or not at all: written aside, then renamed.

One that a restart cut short goes on: what lies aside is not fetched and written again. Over an existing image or disk
(`RestoreRequest.over`) a volume is written where it lies, as far as it differs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpac_api.errors import DpacError, Invalid, NotFound
from dpac_api.models import RestoreReport, RestoreRequest
from dpac_engine.control.host_checks import check_restore_over, check_restore_path
from dpac_engine.control.operations import RESTARTED, Cast, Stopping
from dpac_engine.control.recovery import ImageView, TreeOutcome, TreeView
from dpac_engine.control.restore_journal import RestoreJournal, Whole
from dpac_engine.control.volume_restore import Outcome, VolumeRestore, stored_bytes
from dpac_engine.core.globs import matching, with_folders
from dpac_engine.core.image import StoredRun
from dpac_engine.io.files import make_folder, sync_folder
from dpac_engine.io.members.tree_restore import of_dpac
from dpac_engine.io.restored_volume import RestoredVolume

_CHOOSE, _WRITE, _RENAME = "choose checkpoint", "write aside", "rename"
_WRITE_OVER = "write what differs"


class _Part:
    """Some paths of a tree, with the folders above them (a `recovery.TreeView`)."""

    def __init__(self, tree: TreeView, wanted: Iterable[bytes]) -> None:
        self._tree = tree
        self._wanted = with_folders(wanted)

    def paths(self) -> list[bytes]:
        """See `TreeView`."""
        return [path for path in self._tree.paths() if path in self._wanted]

    def read_entry(self, path: bytes) -> bytes:
        """See `TreeView`."""
        return self._tree.read_entry(path)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """See `TreeView`."""
        return ((path, self.read_entry(path)) for path in self.paths())

    def chunk_place(self, digest: bytes) -> tuple[int, int]:
        """See `TreeView`."""
        return self._tree.chunk_place(digest)

    def read_chunk(self, digest: bytes) -> bytes:
        """See `TreeView`."""
        return self._tree.read_chunk(digest)

    def runs(self, digests: Sequence[bytes]) -> Iterator[StoredRun]:
        """See `TreeView`."""
        return self._tree.runs(digests)


class Restore:
    """One restore at work (an `operations.Run`)."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._request = RestoreRequest.model_validate({**cast.operation.request, "request_id": cast.operation.id})
        assert self._request.to is not None, "a restore in place is another Run"
        self._to = Path(self._request.to)
        self._aside = self._to.parent / f".{self._to.name}.{cast.operation.id}.partial"
        self._content = self._aside / "content"
        self._journal = RestoreJournal(self._aside / "journal")
        self._report: RestoreReport | None = None

    def plan(self) -> Sequence[str]:
        """See `operations.Run`."""
        return [_CHOOSE, _WRITE_OVER] if self._request.over else [_CHOOSE, _WRITE, _RENAME]

    def step(self, name: str) -> str:
        """See `operations.Run`."""
        steps = {_CHOOSE: self._choose, _WRITE: self._write, _WRITE_OVER: self._write_over, _RENAME: self._rename}
        try:
            return steps[name]()
        except OSError as cause:
            raise of_dpac(cause, self._to) from cause

    def clean_up(self) -> None:
        """See `operations.Run`: what was written aside goes; after the rename there is nothing."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def goes_on(self) -> bool:
        """See `operations.Run`: once it is on record what is restored."""
        return self._journal.begun is not None

    def interrupted(self) -> str:
        """See `operations.Run`."""
        return RESTARTED

    def result(self) -> dict[str, Any]:
        """See `operations.Run`: a RestoreReport, once it is done."""
        return self._report.model_dump(mode="json") if self._report else {}

    # -------------------------------------------------------------- steps

    def _choose(self) -> str:
        self._started_ns = self._cast.stage.clock.monotonic_ns()
        timeline, group, begun = self._cast.stage.timeline, self._cast.group, self._journal.begun
        at, wanted = (begun.checkpoint, begun.target) if begun else (self._request.at, self._request.target)
        target, self._mark, note = timeline.resolve(group, at, wanted)
        repository = timeline.private(group, target)
        held = {member.name: (ordinal, member.kind) for ordinal, member in repository.members_at(self._mark).items()}
        if self._request.member not in held:
            there = ", ".join(sorted(held)) or "none"
            raise NotFound(
                f"Checkpoint {self._mark.id} does not hold the member {self._request.member!r} (it holds: {there})."
            )
        self._ordinal, self._kind = held[self._request.member]
        if self._request.paths and self._kind == "volume":
            raise Invalid(f"The member {self._request.member!r} was a volume then: it has bytes and no paths.")
        self._image: ImageView = repository.image(self._mark)
        if begun is None:
            if self._request.over:
                check_restore_over(str(self._to), self._kind)
            else:
                check_restore_path(str(self._to), directory=self._kind == "directory")
            self._begin(self._mark.id, target)
        return f"{self._mark.id} at {target}{f'; {note}' if note else ''}"

    def _begin(self, checkpoint: str, target: str) -> None:
        make_folder(self._aside)  # all of it lies in here, and is found again by clean_up
        self._journal.begin(checkpoint, target)

    def _write(self) -> str:
        done = self._journal.whole
        if done is None:
            done = self._journal.end(*(self._write_volume() if self._kind == "volume" else self._write_tree()))
        self._whole: Whole = done
        return f"{done.bytes_written} bytes{f', {done.bytes_kept} were there' if done.bytes_kept else ''}"

    def _write_over(self) -> str:
        try:
            said = self._write()
        except Stopping:
            raise
        except (DpacError, OSError) as cause:
            error = of_dpac(cause, self._to) if isinstance(cause, OSError) else cause
            goes_on = f"{self._to} may hold a part of the checkpoint now: start the same restore again, and it goes on."
            raise type(error)(f"{error.message} {goes_on}") from cause
        self._tell()
        return said

    def _write_volume(self) -> Outcome:
        volume = self._image.volume(self._ordinal)
        if self._request.over:
            with RestoredVolume.over(self._to, volume.size_bytes) as file:
                return VolumeRestore(volume, file, self._journal, self._progress, over=True).run()
        with RestoredVolume(self._content, volume.size_bytes) as file:
            goal = stored_bytes(volume)
            free = shutil.disk_usage(self._aside).free + file.allocated_bytes
            if goal > free:
                raise Invalid(
                    f"The volume needs {goal} bytes and {self._to.parent} has {free} free. Make room, or choose another disk."
                )
            return VolumeRestore(volume, file, self._journal, self._progress).run()

    def _progress(self, done: int, total: int) -> None:
        self._cast.progress(f"{done} of {total} bytes", done, total)

    def _write_tree(self) -> TreeOutcome:
        tree: TreeView = self._image.tree(self._ordinal)
        if self._request.paths:
            tree = _Part(tree, matching(tree.paths(), self._request.paths))
        partial = self._aside / "partial"
        if self._content.exists():
            self._content.rename(partial)  # whole, but nobody knew: it is looked through
        return self._cast.stage.recovery.restore_tree(
            tree,
            self._content,
            lambda done, total: self._cast.progress(f"{done} bytes written", done, total),
            partial,
        )

    def _rename(self) -> str:
        """Never over anything: `link` fails where a file is, `rename` of a folder where the folder is not empty."""
        try:
            if os.path.lexists(self._content):  # else it was renamed right before a restart
                self._take_name()
        except OSError as cause:
            raise Invalid(f"{self._to} came into being meanwhile ({cause.strerror}). Choose another path.") from cause
        sync_folder(self._to.parent)
        self._tell()
        return str(self._to)

    def _tell(self) -> None:
        self._report = RestoreReport(
            checkpoint=self._mark.id,
            member=self._request.member,
            to=str(self._to),
            bytes_written=self._whole.bytes_written,
            bytes_kept=self._whole.bytes_kept,
            bytes_zeroed=self._whole.bytes_zeroed,
            seconds=round((self._cast.stage.clock.monotonic_ns() - self._started_ns) / 1e9, 3),
        )

    def _take_name(self) -> None:
        if self._kind == "volume":
            with suppress(FileNotFoundError):
                if os.path.samefile(self._content, self._to):
                    return  # linked, right before a restart
            os.link(self._content, self._to)
        else:
            with suppress(FileNotFoundError):
                self._to.rmdir()
            self._content.rename(self._to)
