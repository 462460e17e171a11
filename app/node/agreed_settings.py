"""Which settings must be alike at every node, because they decide about money: what is agreed in the ledger."""

from collections.abc import Mapping

from app.node.config import Config
from core.issuing.config import DeliveryConfig, FlowConfig
from hsm.schemes.table import SCHEMES

FLOW = ("hot_window_days", "ahead_max_s", "unapplied_alarm", "unapplied_refuse", "ceiling_pence", "approval_wait_s")
DELIVERY = ("attempts_max", "give_up_after_s", "explain_wait_ms", "send_within_ms", "trust_unnamed_alerts")
# Names that have come since version 0.2.0. An older node lives by the default of a setting it does not know, so the
# name is told, and must be agreed, only where the value is another: a roll-out needs no stop.
LATER: frozenset[str] = frozenset()
# What each node may choose for itself: how much it does at once, how long it waits, what it remembers. A setting is in
# one list or the other; a test says so to whoever adds one.
OWN_FLOW = (
    "in_flight_max", "batch_max", "commit_attempts_max", "least_deadline_ms", "counter_cache_max", "counter_trust_s",
    "recent_answers_max", "closings_burst", "closings_per_minute", "suppliers_register",
    "registrations_burst", "registrations_per_minute",
)  # fmt: skip
OWN_DELIVERY = ("answer_wait_ms", "back_off_first_ms", "back_off_most_ms", "in_flight_max", "advise_after_s")


def agreed_settings(config: Config) -> Mapping[str, str]:
    """Return this node's value of every setting that must be agreed, by name, in one spelling."""
    settings = {"etcd.shards": str(config.etcd.shards)}
    settings |= {f"flow.{name}": _spelled(getattr(config.flow, name)) for name in FLOW}
    settings |= {f"delivery.{name}": _spelled(getattr(config.delivery, name)) for name in DELIVERY}
    pan = config.flow.pan
    settings["flow.pan.digits"] = str(pan.digits)
    settings["flow.pan.luhn"] = _spelled(pan.luhn)
    settings["flow.pan.issuer_prefixes"] = ",".join(sorted(pan.issuer_prefixes))
    settings["schemes"] = ",".join(sorted(SCHEMES))
    return {name: value for name, value in settings.items() if name not in LATER or value != _default(name)}


def _default(name: str) -> str:
    """Return the default of a setting of flow or delivery, spelled."""
    section, _, field = name.partition(".")
    return _spelled(getattr({"flow": FlowConfig(), "delivery": DeliveryConfig()}[section], field))


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
