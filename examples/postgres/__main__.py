"""Protect a PostgreSQL server whose data and WAL lie on two volumes: one group, so one moment for both."""

import pulumi

import dpac

cfg = pulumi.Config()
volumes = cfg.require("volumes")

copies = dpac.FilesystemTarget("postgres-copies", path=cfg.require("copies"))

# One group: every checkpoint is one moment of both volumes. In two groups they would be recovered to two
# moments, and a server whose data and WAL disagree does not start, or has lost what it acknowledged.
group = dpac.ProtectionGroup(
    "postgres",
    members={
        "data": dpac.Volume(f"{volumes}/data.raw", size=cfg.get("data_size") or "1GiB"),
        "wal": dpac.Volume(f"{volumes}/wal.raw", size=cfg.get("wal_size") or "512MiB"),
    },
    replication={"copies": dpac.Async(to=copies, rpo="5s", retention=dpac.Retention(daily=7))},
    journal=dpac.Journal(history="24h", size_max="8GiB"),
)
dpac.Ready("ready", group=group, until="protected", timeout="10m")

for name, member in group.members.items():
    pulumi.export(name, member.nbd_uri)
