"""Data protection as code: declare in a Pulumi program how an application is protected.

    copies = dpac.FilesystemTarget("copies", path="/mnt/copies")
    group = dpac.ProtectionGroup(
        "shop",
        members={"orders": dpac.Directory("/srv/orders", blueprint="sqlite"), "disk": dpac.Volume("/srv/disk.raw")},
        replication={"copies": dpac.Async(to=copies, rpo="15s", retention=dpac.Retention(daily=30))},
        journal=dpac.Journal(history="24h", size_max="2GiB"),
    )
    ready = dpac.Ready("ready", group=group)
    pulumi.export("disk", group.members["disk"].nbd_uri)

Every argument is described in docs/pulumi.md.
"""

from dpac.acts import Checkpoint, Drill, Ready
from dpac.arguments import Async, Directory, Encryption, Journal, Retention, Site, Sync, Volume
from dpac.group import Member, ProtectionGroup
from dpac.lookup import GroupView, get_checkpoints, get_group, get_target
from dpac.target import FilesystemTarget, S3Target

__all__ = [
    "Async",
    "Checkpoint",
    "Directory",
    "Drill",
    "Encryption",
    "FilesystemTarget",
    "GroupView",
    "Journal",
    "Member",
    "ProtectionGroup",
    "Ready",
    "Retention",
    "S3Target",
    "Site",
    "Sync",
    "Volume",
    "get_checkpoints",
    "get_group",
    "get_target",
]
