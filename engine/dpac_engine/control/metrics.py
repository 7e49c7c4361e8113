"""/metrics: every group's status as Prometheus samples, made anew for each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dpac_api.models import DataState, GroupStatus, SiteInfo, SlaState, TargetUsage, WaitHistogram

Counts = Mapping[tuple[str, str], int]
"""(operation kind, phase) -> how many are journalled."""


def render(
    site: SiteInfo, statuses: Mapping[str, GroupStatus], operations: Counts, usages: Sequence[TargetUsage]
) -> bytes:
    """The samples in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(site, statuses, operations, usages))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(
        self, site: SiteInfo, statuses: Mapping[str, GroupStatus], operations: Counts, usages: Sequence[TargetUsage]
    ) -> None:
        self._site = site
        self._statuses = statuses
        self._operations = operations
        self._usages = usages

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "dpac_site_info", "The site that answers; always 1.", labels=["site_uid", "name", "version"]
        )
        info.add_metric([self._site.site_uid, self._site.name, self._site.version], 1)
        yield info
        yield from self._of_groups()
        yield from self._of_legs()
        yield from self._of_targets()
        done = GaugeMetricFamily("dpac_operations", "Operations in the journal.", labels=["kind", "phase"])
        for (kind, phase), count in sorted(self._operations.items()):
            done.add_metric([kind, phase], count)
        yield done

    def _of_groups(self) -> Iterator[Metric]:
        groups = self._statuses
        yield _gauge(
            "dpac_group_protected",
            "1 if seeded, at a checkpoint on every leg, and every RPO met.",
            "group",
            ((name, float(status.protected)) for name, status in groups.items()),
        )
        yield _gauge(
            "dpac_group_spool_bytes",
            "What the spool holds.",
            "group",
            ((name, status.spool_bytes) for name, status in groups.items()),
        )
        yield _gauge(
            "dpac_group_checkpoint_sequence",
            "Sequence of the newest checkpoint, shipped or not.",
            "group",
            ((name, status.checkpoint_sequence) for name, status in groups.items()),
        )
        yield _gauge(
            "dpac_group_journal_lsn",
            "The journal's head.",
            "group",
            ((name, status.head_lsn) for name, status in groups.items()),
        )
        states = GaugeMetricFamily(
            "dpac_group_data_state", "1 for the state the group is in.", labels=["group", "state"]
        )
        slas = GaugeMetricFamily("dpac_group_sla_state", "1 for the state the group is in.", labels=["group", "state"])
        conditions = GaugeMetricFamily(
            "dpac_group_condition", "1 for each condition that holds.", labels=["group", "type", "subject", "severity"]
        )
        for name, status in groups.items():
            for state in DataState:
                states.add_metric([name, state], float(status.data_state == state))
            for sla in SlaState:
                slas.add_metric([name, sla], float(status.sla_state == sla))
            for type_, subject, severity in {(c.type, c.subject, c.severity) for c in status.conditions}:
                conditions.add_metric([name, type_, subject, severity], 1)
        yield from (states, slas, conditions)
        yield from self._of_shards()

    def _of_shards(self) -> Iterator[Metric]:
        labels = ["group", "shard"]
        holds = HistogramMetricFamily(
            "dpac_shard_hold_seconds", "How long a shard's writers were held for checkpoints.", labels=labels
        )
        expired = CounterMetricFamily(
            "dpac_shard_holds_expired", "Holds that ended by their bound, without a mark.", labels=labels
        )
        skipped = CounterMetricFamily(
            "dpac_group_checkpoints_skipped", "Checkpoints over several shards that were not taken.", labels=["group"]
        )
        for name, status in self._statuses.items():
            for shard in status.shards:
                values = [name, str(shard.shard)]
                holds.add_metric(values, _buckets(shard.hold_wait), shard.hold_wait.sum_seconds)
                expired.add_metric(values, shard.holds_expired)
            if status.shards:
                skipped.add_metric([name], sum(shard.checkpoints_skipped for shard in status.shards))
        yield from (holds, expired, skipped)

    def _of_legs(self) -> Iterator[Metric]:
        labels = ["group", "leg", "target"]
        lag = GaugeMetricFamily(
            "dpac_leg_lag_seconds", "Age of the oldest change not yet at the target.", labels=labels
        )
        behind = GaugeMetricFamily("dpac_leg_lag_bytes", "Journal bytes not yet at the target.", labels=labels)
        rpo = GaugeMetricFamily("dpac_leg_rpo_seconds", "The RPO that was asked for.", labels=labels)
        seeded = GaugeMetricFamily("dpac_leg_seeded_ratio", "How much of the first copy is done.", labels=labels)
        stored = GaugeMetricFamily("dpac_leg_stored_bytes", "What the target holds of the group.", labels=labels)
        newest = GaugeMetricFamily(
            "dpac_leg_latest_checkpoint_timestamp_seconds",
            "When the newest checkpoint at the target was taken.",
            labels=labels,
        )
        locked = GaugeMetricFamily(
            "dpac_leg_immutable_until_timestamp_seconds",
            "Until when nobody can destroy any of what the newest state at the target needs.",
            labels=labels,
        )
        space = GaugeMetricFamily(
            "dpac_leg_space_bytes",
            "What the target holds of the group, by whether one checkpoint needs it, several do, or none: as measured last.",
            labels=[*labels, "share"],
        )
        for group, status in self._statuses.items():
            for name, leg in status.legs.items():
                values = [group, name, leg.target]
                if leg.space is not None:
                    for share in ("unique", "shared", "reclaimable"):
                        space.add_metric([*values, share], getattr(leg.space, f"{share}_bytes"))
                lag.add_metric(values, leg.lag_seconds)
                behind.add_metric(values, leg.lag_bytes)
                rpo.add_metric(values, leg.rpo_seconds)
                seeded.add_metric(values, leg.seeded_fraction)
                stored.add_metric(values, leg.stored_bytes)
                if leg.latest_checkpoint_time is not None:
                    newest.add_metric(values, leg.latest_checkpoint_time.timestamp())
                if leg.immutable_until is not None:
                    locked.add_metric(values, leg.immutable_until.timestamp())
        yield from (lag, behind, rpo, seeded, stored, space, newest, locked)
        yield from self._of_sync_legs(labels)

    def _of_sync_legs(self, labels: list[str]) -> Iterator[Metric]:
        in_sync = GaugeMetricFamily(
            "dpac_leg_in_sync", "1 while nothing is acknowledged that a sync leg's target does not have.", labels=labels
        )
        falls = CounterMetricFamily(
            "dpac_leg_sync_falls", "How often a sync leg fell out of sync since its worker started.", labels=labels
        )
        waits = HistogramMetricFamily(
            "dpac_group_flush_wait_seconds",
            "How long FLUSHes and durable acknowledgements waited, targets of sync legs included.",
            labels=["group"],
        )
        for group, status in self._statuses.items():
            for name, leg in status.legs.items():
                if leg.sync is not None:
                    in_sync.add_metric([group, name, leg.target], float(leg.in_sync))
                    falls.add_metric([group, name, leg.target], leg.sync.falls)
            if (wait := status.flush_wait) is not None:
                waits.add_metric([group], _buckets(wait), wait.sum_seconds)
        yield from (in_sync, falls, waits)

    def _of_targets(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "dpac_target_requests",
            "Requests by what they are billed as, since the processes started.",
            labels=["target", "class"],
        )
        failed = CounterMetricFamily("dpac_target_failed_requests", "Those of them that failed.", labels=["target"])
        sent = CounterMetricFamily("dpac_target_sent_bytes", "Bytes of objects sent.", labels=["target"])
        received = CounterMetricFamily("dpac_target_received_bytes", "Bytes of objects received.", labels=["target"])
        cost = GaugeMetricFamily(
            "dpac_target_monthly_cost", "An estimate, at the present rates.", labels=["target", "currency"]
        )
        for usage in self._usages:
            for kind in ("write", "read", "list", "delete"):
                requests.add_metric([usage.target, kind], getattr(usage.traffic, f"{kind}_requests"))
            failed.add_metric([usage.target], usage.traffic.failed_requests)
            sent.add_metric([usage.target], usage.traffic.sent_bytes)
            received.add_metric([usage.target], usage.traffic.received_bytes)
            if usage.monthly_cost is not None:
                cost.add_metric([usage.target, usage.monthly_cost.currency], usage.monthly_cost.total)
        yield from (requests, failed, sent, received, cost)


def _buckets(wait: WaitHistogram) -> list[tuple[str, float]]:
    return [*((bound, float(count)) for bound, count in wait.buckets.items()), ("+Inf", float(wait.count))]


def _gauge(name: str, meaning: str, label: str, samples: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for value, sample in samples:
        family.add_metric([value], sample)
    return family
