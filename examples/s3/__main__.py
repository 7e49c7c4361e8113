"""Protect an order database and a volume: every second a checkpoint, every change in a bucket within a minute."""

import pulumi

import dpac

cfg = pulumi.Config()
data = cfg.require("data")

# A bucket that exists, at Amazon or at any server that speaks its protocol. The keys are not here, nor in Pulumi's
# state: `credentials` says where the backend's host has them.
bucket = dpac.S3Target(
    "bucket",
    bucket=cfg.require("bucket"),
    prefix=cfg.get("prefix"),
    region=cfg.get("region"),
    endpoint=cfg.get("endpoint"),
    ca_file=cfg.get("ca_file"),
    credentials=cfg.get("credentials"),
)

# Whoever reads the bucket reads nothing without the key. The escrow keys open it when this host is lost.
group = dpac.ProtectionGroup(
    "shop-s3",
    members={
        "orders": dpac.Directory(f"{data}/orders", blueprint="sqlite"),
        "disk": dpac.Volume(f"{data}/disk.raw", size="64MiB"),
    },
    replication={"bucket": dpac.Async(to=bucket, rpo="1m", retention=dpac.Retention(hourly=24, daily=7))},
    journal=dpac.Journal(history="6h", size_max="4GiB"),
    encryption=dpac.Encryption(escrow=cfg.get_object("escrow") or []),
)

# `pulumi up` ends when the group is protected, and recovery from the bucket has been rehearsed once.
ready = dpac.Ready("ready", group=group, until="protected", timeout=cfg.get("timeout") or "10m")
drill = dpac.Drill("first", group=group, rto="5m", opts=pulumi.ResourceOptions(depends_on=[ready]))

pulumi.export("disk", group.members["disk"].nbd_uri)
pulumi.export("rehearsed_from", drill.from_target)
