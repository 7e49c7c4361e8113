"""Protect an order database and a volume: every second a checkpoint, every change at the copies within 15 seconds."""

import pulumi

import dpac

cfg = pulumi.Config()
data = cfg.require("data")

# Where the copies go: here a directory, elsewhere another disk, a bucket or another site.
copies = dpac.FilesystemTarget("copies", path=cfg.require("copies"))

# What is recovered together, how much may be lost, and how far back every second can be had.
group = dpac.ProtectionGroup(
    "quickstart",
    members={
        "orders": dpac.Directory(f"{data}/orders", blueprint="sqlite"),
        "disk": dpac.Volume(f"{data}/disk.raw", size="64MiB"),
    },
    replication={"copies": dpac.Async(to=copies, rpo="15s")},
    journal=dpac.Journal(history="24h", size_max="2GiB"),
)

# `pulumi up` ends when the group is protected, and recovery has been rehearsed once.
ready = dpac.Ready("ready", group=group, until="protected", timeout="5m")
dpac.Drill("first", group=group, rto="1m", opts=pulumi.ResourceOptions(depends_on=[ready]))

pulumi.export("disk", group.members["disk"].nbd_uri)
