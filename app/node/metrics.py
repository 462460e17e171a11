"""Prometheus: every figure of one node, read when it is asked for, so that counting costs a vend nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.node.assembly import Node
from app.node.gc_pauses import CollectorPauses
from app.node.metrics_server import metrics_server
from core.api.interceptor import Interceptor
from core.metrics import Stage
from core.net.address import parse_address


@contextmanager
def serve_metrics(node: Node, interceptor: Interceptor) -> Iterator[None]:
    """Serve the page for as long as the context lasts, if the configuration names an address.

    Raises:
        OSError: the port is taken.
    """
    if not node.config.node.metrics:
        yield
        return
    at = parse_address(node.config.node.metrics, field="node.metrics")
    registry, pauses = CollectorRegistry(), CollectorPauses()
    registry.register(NodeCollector(node, interceptor, pauses))
    with metrics_server(at, registry):
        pauses.install()
        try:
            yield
        finally:
            pauses.remove()


class NodeCollector(Collector):
    """Reads the figures of a node."""

    def __init__(self, node: Node, interceptor: Interceptor, pauses: CollectorPauses) -> None:
        self._node = node
        self._interceptor = interceptor
        self._pauses = pauses

    def collect(self) -> Iterator[Metric]:
        """Return every figure as it is now."""
        yield self._stages()
        yield self._calls()
        yield from self._queues()
        yield from self._hsm()
        yield from self._cluster()
        yield from self._copies()
        yield from self._head_ends()
        yield from self._ledger()
        yield from self._tls()
        yield from self._connections()

    def _stages(self) -> Metric:
        family = HistogramMetricFamily(
            "utrn_stage_seconds",
            "How long a stage took: wait for a batch, sign (HSM), commit (etcd), issue, send, answer, deliver.",
            labels=["stage"],
        )
        for stage in Stage:
            bounds, count, total = self._node.times.histogram(stage)
            buckets = [(f"{bound:.6f}", float(below)) for bound, below in bounds]
            family.add_metric([stage.value], buckets=[*buckets, ("+Inf", float(count))], sum_value=total)
        return family

    def _calls(self) -> Metric:
        family = CounterMetricFamily(
            "utrn_calls", "Calls answered, by reason; OK if not refused.", labels=["method", "reason"]
        )
        for (method, reason), count in sorted(self._interceptor.answered.items()):
            family.add_metric([method, reason], count)
        return family

    def _queues(self) -> Iterator[Metric]:
        node = self._node
        yield CounterMetricFamily("utrn_commit_batches", "Group commits sent.", value=node.line.batches)
        yield CounterMetricFamily("utrn_commit_batch_vends", "Vends in them.", value=node.line.batched)
        yield GaugeMetricFamily(
            "utrn_issues_in_flight", "Vends that wait or are being committed.", value=node.line.in_flight
        )
        yield GaugeMetricFamily("utrn_deliveries_in_flight", "Deliveries under way.", value=node.delivery.under_way)
        yield GaugeMetricFamily("utrn_loop_delay_seconds", "How late the event loop is.", value=node.loop_delay.seconds)
        yield CounterMetricFamily(
            "utrn_collector_pauses", "Garbage collections of all that lives.", value=self._pauses.count
        )
        yield CounterMetricFamily(
            "utrn_collector_paused_seconds", "Seconds that they stopped the node.", value=self._pauses.seconds
        )
        yield GaugeMetricFamily(
            "utrn_collector_longest_pause_seconds", "The longest of them.", value=self._pauses.longest
        )
        owed = GaugeMetricFamily(
            "utrn_owed", "Deliveries owed, in every shard, by this node's mirror.", labels=["shard"]
        )
        for shard, count in sorted(node.delivery.owed_by_shard().items()):
            owed.add_metric([str(shard)], count)
        yield owed
        yield GaugeMetricFamily(
            "utrn_owed_longest_seconds",
            "How long the delivery that waits for no head end and is owed longest has been known to its shard's owner.",
            value=node.head_end_states.longest_owed_s,
        )
        yield GaugeMetricFamily(
            "utrn_give_up_after_seconds",
            "When a delivery is given up, after it was asked for.",
            value=node.config.delivery.give_up_after_s,
        )
        yield from self._sold()
        yield from self._said()

    def _connections(self) -> Iterator[Metric]:
        caps = self._node.connection_caps
        yield GaugeMetricFamily("utrn_connections", "Connections to this node at the last look.", value=caps.held)
        ended = CounterMetricFamily(
            "utrn_connections_ended", "Connections ended beyond a cap, by address or certificate.", labels=["cap"]
        )
        for cap, count in sorted(caps.ended.items()):
            ended.add_metric([cap], count)
        yield ended

    def _tls(self) -> Iterator[Metric]:
        days = GaugeMetricFamily(
            "utrn_certificate_days_left",
            "Days until a certificate that this node uses or trusts ends; below 0 if it has.",
            labels=["key", "subject"],
        )
        for (key, subject), left in self._node.tls.days_left().items():
            days.add_metric([key, subject], left)
        yield days
        yield GaugeMetricFamily(
            "utrn_tls_problems",
            "Files of TLS that cannot be used, and were not taken: the ones before stay in use.",
            value=self._node.tls.unusable,
        )

    def _sold(self) -> Iterator[Metric]:
        ceilings = self._node.ceilings
        sold = CounterMetricFamily("utrn_sold_pence", "Pence of codes made and committed here.", labels=["participant"])
        for name, pence in sorted(ceilings.sold.items()):
            sold.add_metric([name], pence)
        used = GaugeMetricFamily(
            "utrn_ceiling_used",
            "Share of the seller's ceiling that nodes have drawn in this hour, 0 to 1, as this node last heard.",
            labels=["participant"],
        )
        for name, share in sorted(ceilings.used().items()):
            used.add_metric([name], share)
        held = GaugeMetricFamily(
            "utrn_ceiling_held_pence", "Pence drawn by this node and not sold.", labels=["participant"]
        )
        for name, pence in sorted(ceilings.held().items()):
            held.add_metric([name], pence)
        yield from (sold, used, held)
        yield CounterMetricFamily("utrn_ceiling_draws", "Draws from sellers' ceilings.", value=ceilings.draws)

    def _said(self) -> Iterator[Metric]:
        recorder = self._node.delivery.recorder
        yield GaugeMetricFamily(
            "utrn_open_cases", "Codes that wait for their supplier to read the meter's log.", value=recorder.open_cases
        )
        said = CounterMetricFamily(
            "utrn_said",
            "What meters said of codes whose delivery was not under way, by what came of it.",
            labels=["what"],
        )
        for what, count in sorted(recorder.counts.items()):
            said.add_metric([what], count)
        yield said
        waiting, longest_s = recorder.waiting_for_records
        yield GaugeMetricFamily(
            "utrn_said_waiting", "What meters said of codes that waits for a record that is set aside.", value=waiting
        )
        yield GaugeMetricFamily(
            "utrn_said_waiting_longest_seconds",
            "For how long the first of it has waited at this node.",
            value=longest_s,
        )

    def _hsm(self) -> Iterator[Metric]:
        """Return what the HSM workers are worth: one that is missing, or has grown, is seen before the last one is."""
        signer = self._node.signer
        yield GaugeMetricFamily("utrn_hsm_ready", "1 if the HSM can sign.", value=signer.ready)
        yield CounterMetricFamily(
            "utrn_hsm_worker_failed_starts", "HSM workers that could not be started.", value=signer.failed_starts
        )
        yield CounterMetricFamily(
            "utrn_hsm_worker_renewals", "HSM workers replaced for what they had signed or grown.", value=signer.renewals
        )
        gauges = {
            name: GaugeMetricFamily(name, text, labels=["worker"])
            for name, text in (
                ("utrn_hsm_worker_ready", "1 while an HSM worker is logged in."),
                ("utrn_hsm_worker_age_seconds", "Since an HSM worker logged in."),
                ("utrn_hsm_worker_resident_bytes", "Memory an HSM worker holds."),
                ("utrn_hsm_worker_signatures", "Signatures made since it logged in."),
            )
        }
        for place, one in enumerate(signer.figures()):
            gauges["utrn_hsm_worker_ready"].add_metric([str(place)], one.ready)
            gauges["utrn_hsm_worker_age_seconds"].add_metric([str(place)], one.age_s)
            gauges["utrn_hsm_worker_resident_bytes"].add_metric([str(place)], one.resident_bytes)
            gauges["utrn_hsm_worker_signatures"].add_metric([str(place)], one.signatures)
        yield from gauges.values()

    def _cluster(self) -> Iterator[Metric]:
        node = self._node
        yield GaugeMetricFamily("utrn_serving", "1 if this node would issue now.", value=node.services.health.serving)
        missing = GaugeMetricFamily(
            "utrn_key_missing", "1 for each registered key that the HSM lacks.", labels=["supplier", "key_id"]
        )
        for key in node.keys.missing:
            missing.add_metric([key.supplier_id, key.key_id], 1)
        yield missing
        yield GaugeMetricFamily(
            "utrn_drained", "1 if an operator has drained this node.", value=node.cluster.ownership.drained
        )
        yield GaugeMetricFamily(
            "utrn_mirror_revision", "How far the mirror of the outbox is.", value=node.outbox.mirror_revision
        )
        yield GaugeMetricFamily("utrn_trail_healthy", "1 if the audit log is written.", value=node.audit_log.healthy)
        yield CounterMetricFamily(
            "utrn_trail_lost", "Decisions the audit log could not keep.", value=node.audit_log.lost
        )
        peers, ownership = node.cluster.peers, node.cluster.ownership
        gone = ownership.roster().keys() - ownership.members().keys()
        yield GaugeMetricFamily("utrn_nodes_missing", "Nodes on the roster without a lease.", value=len(gone))
        yield GaugeMetricFamily("utrn_peers_heard", "Peers whose heart is heard.", value=len(peers.heard_of_late()))
        yield GaugeMetricFamily(
            "utrn_peers_unheard", "Nodes with a lease whose heart is not heard now.", value=len(peers.unheard())
        )
        yield GaugeMetricFamily("utrn_peers_suspected", "Peers not heard for too long.", value=len(peers.silent()))
        yield CounterMetricFamily("utrn_peer_revokes", "Leases of peers that this node revoked.", value=peers.revokes)
        yield from self._time()
        unowned = node.config.etcd.shards - len(ownership.owners())
        yield GaugeMetricFamily("utrn_shards_unowned", "Shards without an owner, by this node's copy.", value=unowned)
        epochs = GaugeMetricFamily("utrn_epoch", "Epoch of each shard this node owns.", labels=["shard"])
        for shard, epoch in sorted(node.cluster.ownership.epochs().items()):
            epochs.add_metric([str(shard)], epoch)
        yield epochs

    def _ledger(self) -> Iterator[Metric]:
        node = self._node
        yield GaugeMetricFamily(
            "utrn_ledger_lost", "1 if the ledger is not the one this node knows.", value=bool(node.ledger.guard.lost)
        )
        yield GaugeMetricFamily(
            "utrn_ledger_agreed", "1 if this node's settings are those agreed.", value=node.ledger.watch.agreed
        )
        space = node.ledger.space
        yield GaugeMetricFamily("utrn_etcd_db_bytes", "The fullest etcd member's database.", value=space.used_bytes)
        yield GaugeMetricFamily("utrn_etcd_quota_bytes", "What etcd may hold.", value=space.quota_bytes)
        yield GaugeMetricFamily("utrn_etcd_nospace", "1 if etcd has raised NOSPACE.", value=space.alarm)
        yield GaugeMetricFamily("utrn_ledger_full", "1 if nothing is issued for want of space.", value=space.full)
        kept_at = node.ledger.watch.kept_at
        if kept_at:
            age = time.monotonic() - kept_at
            yield GaugeMetricFamily("utrn_ledger_state_age_seconds", "Since what is known was kept.", value=age)

    def _time(self) -> Iterator[Metric]:
        state = self._node.time.state()
        yield GaugeMetricFamily("utrn_time_known", "1 if this node knows cluster time.", value=state.known)
        yield GaugeMetricFamily(
            "utrn_time_in_doubt",
            "1 if cluster time may be wrong: nobody carried it for a while.",
            value=bool(state.doubt.value),
        )
        if state.wall_off_ms is not None:
            yield GaugeMetricFamily(
                "utrn_clock_off_seconds",
                "How far this node's wall clock is ahead of cluster time.",
                value=state.wall_off_ms / 1000,
            )
        if state.off_ms is not None:
            yield GaugeMetricFamily(
                "utrn_cluster_time_off_seconds",
                "How far the wall clocks of a majority are ahead of cluster time.",
                value=state.off_ms / 1000,
            )

    def _copies(self) -> Iterator[Metric]:
        healed = CounterMetricFamily(
            "utrn_copy_healed", "Changes a copy had missed, found by comparison with the ledger.", labels=["copy"]
        )
        age = GaugeMetricFamily(
            "utrn_copy_compared_age_seconds", "Since a copy was compared with the ledger, or read.", labels=["copy"]
        )
        lag = GaugeMetricFamily(
            "utrn_copy_lag_revisions", "How far a copy is behind the furthest one.", labels=["copy"]
        )
        copies = self._node.copies()
        head = max(copy_.revision for copy_ in copies)
        for copy_ in copies:
            healed.add_metric([copy_.name], copy_.healed)
            if copy_.ready:
                age.add_metric([copy_.name], time.monotonic() - copy_.compared_at)
                lag.add_metric([copy_.name], head - copy_.revision)
        yield from (healed, age, lag)
        aside = GaugeMetricFamily(
            "utrn_records_set_aside", "Records this program cannot understand, by kind.", labels=["kind"]
        )
        for kind, count in sorted(self._node.ledger.aside.counts.items()):
            aside.add_metric([kind], count)
        yield aside

    def _head_ends(self) -> Iterator[Metric]:
        """Return how this node stands to each head end, and what was not believed of it."""
        gauges = {
            name: GaugeMetricFamily(name, text, labels=["head_end"])
            for name, text in (
                ("utrn_head_end_available", "1 while a head end's event stream works."),
                ("utrn_head_end_missing", "1 if there is such a head end and this node is not configured with it."),
                ("utrn_parked", "Deliveries of this node's shards that wait for a head end."),
                ("utrn_parked_oldest_seconds", "How long the one that has waited longest has been owed."),
            )
        }
        for one in self._node.head_end_states.latest:
            gauges["utrn_head_end_available"].add_metric([one.name], one.available)
            gauges["utrn_head_end_missing"].add_metric([one.name], not one.configured)
            gauges["utrn_parked"].add_metric([one.name], one.parked)
            gauges["utrn_parked_oldest_seconds"].add_metric([one.name], one.oldest_parked_ms / 1000)
        yield from gauges.values()
        family = CounterMetricFamily(
            "utrn_head_end_set_aside",
            "What a head end said that was out of bounds and not believed, and messages it refused as stale.",
            labels=["head_end", "why"],
        )
        for (name, why), count in sorted(self._node.set_aside.counts.copy().items()):
            family.add_metric([name, why], count)
        yield family
