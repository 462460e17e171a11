"""Holds a run's figures against slo.toml."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SLO_FILE = Path(__file__).with_name("slo.toml")
_ISSUE, _STATUS = ("TopUp", "IssueUtrn"), ("GetVend", "DeliverVend")


def figures_of(entries: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of a run from Locust's JSON, one entry per kind of call.

    A group's quantile is the worst of its kinds.
    """
    found: dict[str, float] = {}
    by_name = {entry["name"]: entry for entry in entries}
    for group, names in (("issue", _ISSUE), ("status", _STATUS)):
        there = [by_name[name] for name in names if name in by_name and by_name[name]["num_requests"]]
        requests = sum(one["num_requests"] for one in there)
        found[f"{group}.requests"] = requests
        found[f"{group}.p50_ms"] = max((quantile_ms(one["response_times"], 0.50) for one in there), default=0.0)
        found[f"{group}.p99_ms"] = max((quantile_ms(one["response_times"], 0.99) for one in there), default=0.0)
        found[f"{group}.failed_share"] = sum(one["num_failures"] for one in there) / requests if requests else 0.0
    return found


def quantile_ms(times: dict[str, int], share: float) -> float:
    """Return a quantile of Locust's counts by rounded milliseconds."""
    left = share * sum(times.values())
    for milliseconds, count in sorted((float(key), count) for key, count in times.items()):
        left -= count
        if left <= 0:
            return milliseconds
    return 0.0


def missed(figures: dict[str, float], slo_file: Path = SLO_FILE) -> list[str]:
    """Return a sentence for each objective that was missed. `served_share` is a least, all others are mosts."""
    objectives = tomllib.loads(slo_file.read_text(encoding="utf-8"))
    sentences = []
    for group, limits in objectives.items():
        for name, limit in limits.items():
            value = figures.get(f"{group}.{name}")
            if value is None:
                sentences.append(f"{group}.{name} was not measured")
            elif value < limit if name == "served_share" else value > limit:
                sentences.append(f"{group}.{name}: {value:g}, objective {limit:g}")
    return sentences
