"""The defects that a test must see, each as one changed line of the engine.

A line that is rewritten fails `test_defects_are_seen.py` loudly: then say here how its promise is broken now.
"""

from __future__ import annotations

from tests.mutations.mutant import Mutation

SEQUENCES = "tests/sim/test_crash_sequences.py::test_after_any_short_sequence_a_crash_loses_nothing_that_was_promised"
ORACLE = "tests/e2e/test_oracle.py::test_every_checkpoint_mounted_is_a_moment_that_was"

SQLITE_ORACLE = (
    "tests/e2e/test_sqlite_oracle.py::test_a_mounted_checkpoint_of_a_sqlite_application_is_what_its_cut_says"
)

SEEN_SOON = {
    "a cut of each volume for itself": Mutation(
        "core/image.py",
        "return VolumeImage(self.segments, ordinal, self.lsn)",
        "return VolumeImage(self.segments, ordinal, self.lsn - 512 * ordinal)",
        ["tests/sim/test_simulation.py::test_a_history_that_once_failed"],
    ),
    "a spool that is not synced": Mutation(
        "io/spool.py",
        "os.fdatasync(self._files[index].fd)",
        "index",
        [f"{SEQUENCES}[1]"],
    ),
    "a FUA that is ignored": Mutation(
        "io/nbd/requests.py",
        "late = self.durable_acks or flags & nbd.CMD_FLAG_FUA",
        "late = self.durable_acks",
        ["tests/unit/test_nbd_server.py::test_a_unix_client_is_acknowledged_before_durability"],
    ),
    "a bitmap that is cleared before its blocks are at the target": Mutation(
        "control/tracking.py",
        'are at the target."""\n        self._noting.discard(leg)',
        'are at the target."""\n        self._noting.discard(leg)\n'
        "        self._bitmaps[leg] = {n: DirtyBitmap(old.size_bytes) for n, old in self._bitmaps[leg].items()}",
        ["tests/unit/test_tracking.py::test_after_a_long_absence_only_what_changed_is_sent"],
    ),
    "a checksum of records that nobody looks at": Mutation(
        "core/records.py",
        'if (bad := np.flatnonzero(headers["checksum"] != np.array(sums, np.uint64))).size:',
        'if (bad := np.flatnonzero(headers["checksum"] != headers["checksum"])).size:',
        ["tests/unit/test_spool.py::test_a_flipped_bit_in_a_record_is_found_by_reading"],
    ),
    "a shard that is marked though it has let its writers go": Mutation(
        "core/shared_mark.py",
        "return bool(token) and token == self.token and now < self._until",
        "return bool(token) and now < self._until + 1",
        ["tests/unit/test_shared_mark.py::test_a_long_history_of_many_attempts_has_only_moments_that_were"],
    ),
    "a fold that loses a write": Mutation(
        "core/extents.py",
        "narrow = np.flatnonzero(~wide)",
        "narrow = np.flatnonzero(~wide)[1:]",
        ["tests/unit/test_extents.py"],
    ),
    "a merge that loses a trim": Mutation(
        "core/merge.py",
        "_DEVICE = (Kind.WRITE, Kind.FILL, Kind.ZERO, Kind.TRIM)",
        "_DEVICE = (Kind.WRITE, Kind.FILL, Kind.ZERO)",
        ["tests/unit/test_compaction.py"],
    ),
    "a TRIM that is not recorded": Mutation(
        "io/members/volume.py",
        'entries.append(Entry(int(kind), 0, ordinal, offset, length, b""))',
        "if kind != ChangeKind.TRIM:\n"
        '                    entries.append(Entry(int(kind), 0, ordinal, offset, length, b""))',
        [f"{SEQUENCES}[2]"],
    ),
    "a write-behind out of the journal's order": Mutation(
        "io/members/write_behind.py",
        "in needed(changes):",
        "in reversed(list(needed(changes))):",
        [f"{SEQUENCES}[2]"],
    ),
    "a write-behind that lets an older write win": Mutation(
        "io/members/write_behind.py",
        "stretch[offset] = change",
        "stretch.setdefault(offset, change)",
        [f"{SEQUENCES}[2]"],
    ),
    "a gap that is not shown": Mutation(
        "core/manifest.py",
        "begin <= lsn and (end is None or lsn < end)",
        "begin <= lsn",
        [
            "tests/unit/test_manifest.py",
            "tests/unit/test_group.py::test_a_leg_that_the_spool_cannot_wait_for_is_seeded_anew",
        ],
    ),
    "a sync leg whose FLUSH waits for one disk": Mutation(
        "control/gate.py",
        "return all(not pledge.gating or pledge.confirmed_lsn >= lsn for pledge in self._pledges.values())",
        "return True",
        ["tests/unit/test_sync_leg.py::test_a_flush_waits_while_the_target_does_not_answer"],
    ),
}
"""Seen within seconds, by tests that start no process."""

SEEN_BY_ORACLES = {
    "shards that are marked without holding their writers": Mutation(
        "io/members/volume.py",
        "return self.held or self._full",
        "return self._full",
        ["tests/e2e/test_shards.py::test_every_checkpoint_over_two_workers_is_a_moment_that_was"],
    ),
    "a cut of each volume for itself": Mutation(
        "core/image.py",
        "return VolumeImage(self.segments, ordinal, self.lsn)",
        "return VolumeImage(self.segments, ordinal, self.lsn + 16384 * ordinal)",
        [ORACLE],
    ),
    "a fold that loses a write": Mutation(
        "core/extents.py", "narrow = np.flatnonzero(~wide)", "narrow = np.flatnonzero(~wide)[1:]", [ORACLE]
    ),
    "a scan that promises its end instead of its beginning": Mutation(
        "io/members/capture.py",
        "self.index.scanned_ns = started_ns",
        "self.index.scanned_ns = self._clock.now_ns()",
        [SQLITE_ORACLE],
    ),
    "a barrier that captures nothing": Mutation(
        "io/members/directory.py",
        "            await self._capture_locked(None)\n            exact = ",
        "            await self._capture_locked([])\n            exact = ",
        [SQLITE_ORACLE],
    ),
    "a database copied without its log": Mutation(
        "io/blueprints/sqlite.py", "self._back_up(source, scratch)", "shutil.copyfile(source, scratch)", [SQLITE_ORACLE]
    ),
}
"""Seen by the tests that hold every checkpoint of a live site against a record kept outside of it."""
