"""Which promise breaks without which sync: every call of the engine that makes something durable, and its proof.

The scenario named here (`scenarios.py`) must lose something, within `SEEDS_MAX` seeds, once that one call is left out.
"""

SEEDS_MAX = 8

_CONTROL, _IO = "dpac_engine.control", "dpac_engine.io"

PROOFS = {
    f"{_CONTROL}.catalogue:_engine._connected:PRAGMA synchronous=FULL": "an answered request",
    f"{_CONTROL}.catalogue_rebuild:rebuild:sync_folder": "a rebuilt catalogue",
    f"{_CONTROL}.group:Group._store_state:replace_file": "a group's state",
    f"{_CONTROL}.mounts:Mounts._record:replace_file": "a mount",
    f"{_CONTROL}.mounts:Mounts._open_members:make_folder": "a FLUSH of a mount",
    f"{_CONTROL}.reconciler:Reconciler._write_assignment:make_folder": "an assignment",
    f"{_CONTROL}.reconciler:Reconciler._write_assignment:replace_file": "an assignment",
    f"{_CONTROL}.restore:Restore._write_volume:os.fsync": "a restored volume",
    f"{_CONTROL}.restore:Restore._rename:sync_folder": "a restored volume",
    f"{_CONTROL}.serve:start_detached:make_folder": "a detached start",
    f"{_CONTROL}.site:Site.open:make_folder": "an older site",
    f"{_CONTROL}.site:Site._make_secrets:replace_file": "a new site",
    f"{_CONTROL}.site:Site._make_secrets:replace_file#2": "a new site",
    f"{_CONTROL}.site:Site._write:replace_file": "a new site",
    f"{_CONTROL}.site:SiteLocks.take:make_folder": "a new site",
    f"{_CONTROL}.worker:Worker._detach:replace_file": "a drained group",
    f"{_IO}.files:replace_file:os.fsync": "a group's state",
    f"{_IO}.files:replace_file:sync_folder": "a group's state",
    f"{_IO}.files:sync_folder:os.fsync": "a group's state",
    f"{_IO}.files:sync_name:sync_folder": "flushed records",
    f"{_IO}.files:make_folder:make_folder": "a new site",
    f"{_IO}.files:make_folder:sync_name": "flushed records",
    f"{_IO}.keys:Keyring.add:make_folder": "a data key",
    f"{_IO}.keys:Keyring.add:replace_file": "a data key",
    f"{_IO}.keys:Keyring.export_kek:os.fsync": "an escrow copy",
    f"{_IO}.keys:Keyring.export_kek:sync_folder": "an escrow copy",
    f"{_IO}.keys:Keyring.confirm_escrow:replace_file": "a confirmed escrow",
    f"{_IO}.members.tree_index:TreeIndex.open:make_folder": "a directory's index",
    f"{_IO}.members.tree_index:TreeIndex.open:PRAGMA synchronous=FULL": "a directory's index",
    f"{_IO}.members.tree_restore:_publish:sync_folder": "a restored tree",
    f"{_IO}.members.tree_restore:_publish:os.fsync": "a tree restored in place",
    f"{_IO}.members.tree_restore:_sync:syncfs": "a restored tree",
    f"{_IO}.members.volume:Volume.stop:os.fsync": "a detached volume",
    f"{_IO}.members.volume:Volume.flush:os.fdatasync": "a FLUSH without a journal",
    f"{_IO}.members.volume:Volume.sync:os.fdatasync": "changes in the volume",
    f"{_IO}.members.volume:Volume.write_through_from_now:os.fdatasync": "a journal that failed",
    f"{_IO}.members.volume:_open_locked:sync_name": "a volume just made",
    f"{_IO}.mounted_volume:MountedVolume.__init__:sync_folder": "a FLUSH of a mount",
    f"{_IO}.mounted_volume:MountedVolume._sync:os.fdatasync": "a FLUSH of a mount",
    f"{_IO}.mounted_volume:MountedVolume._sync:mmap.flush": "a FLUSH of a mount",
    f"{_IO}.spool:Spool.__init__:make_folder": "flushed records",
    f"{_IO}.spool:Spool._commit:sync_folder": "flushed records",
    f"{_IO}.spool:Spool._commit:os.fdatasync": "flushed records",
    f"{_IO}.spool:Spool._sync_all:os.fdatasync": "records of an earlier life",
    f"{_IO}.spool:Spool._sync_all:sync_folder": "records of an earlier life",
    f"{_IO}.spool:_allocate:os.fsync": "a spare file",
    f"{_IO}.stores.filesystem:FilesystemStore.put:sync_folder": "an object beside others",
    f"{_IO}.stores.filesystem:FilesystemStore.create:sync_folder": "a created object",
    f"{_IO}.stores.filesystem:FilesystemStore.delete:sync_folder": "a deleted object",
    f"{_IO}.stores.filesystem:FilesystemStore._written_aside:os.fsync": "a stored object",
    f"{_IO}.stores.filesystem:FilesystemStore._make_folders:make_folder": "a stored object",
}
"""Site (`omission.py`) -> scenario."""
