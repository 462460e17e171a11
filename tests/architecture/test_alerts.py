"""The alert rules: each can fire at all. That each has its runbook and its figures is for other tests."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "observe" / "alerts.yaml").read_text())["groups"][0]["rules"]
_AGGREGATE = re.compile(r"\b(count|sum|min|max|avg)\b(?! by| without)\s*\(")
_COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)(?!\s*bool)")


def _never_matches(expression: str) -> bool:
    """Return whether a comparison has labels on one side only: PromQL pairs such series with none."""
    for part in re.split(r"\b(?:and|or|unless)\b", _without_selectors(expression)):
        sides = _COMPARISON.split(part, maxsplit=1)
        if len(sides) == 3:
            left, _, right = sides
            labelled = [side for side in (left, right) if "utrn_" in side and not _AGGREGATE.search(side)]
            bare = [side for side in (left, right) if _AGGREGATE.search(side)]
            if labelled and bare and "on(" not in part.replace(" ", "") and "scalar" not in part:
                return True
    return False


def _without_selectors(expression: str) -> str:
    return re.sub(r"\{[^}]*\}", "", expression.replace('up{job="utrn"} == 1', "up"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_no_rule_compares_what_never_matches(rule: dict[str, str]) -> None:
    assert not _never_matches(rule["expr"])


def test_the_search_finds_a_rule_that_never_fires() -> None:
    assert _never_matches('utrn_peers_heard < count(up{job="utrn"} == 1) - 1')
    assert not _never_matches("2 * count(utrn_shards_unowned > 0) > count(utrn_shards_unowned)")
    assert not _never_matches("utrn_peers_heard < on() group_left() count(up) - 1")


def test_no_rule_names_a_number_that_is_configuration() -> None:
    """The number of shards is one: a cluster with fewer would page for ever, one with more never."""
    shards = next(rule["expr"] for rule in RULES if rule["alert"] == "UtrnShardUnowned")
    assert re.findall(r"\b\d+\b", shards) == ["2", "0"]
