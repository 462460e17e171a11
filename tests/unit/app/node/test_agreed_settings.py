"""Which settings must be alike: every one is said to be agreed_settings, or a node's own."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from app.node import agreed_settings
from app.node.config import Config, load_config
from cluster.ledger.identity import differences
from core.domain.meter import PanRule
from core.issuing.config import DeliveryConfig, FlowConfig

DEV = Path(__file__).parents[4] / "deploy" / "config" / "dev.toml"


def dev() -> Config:
    return load_config(DEV, {})


def test_every_limit_is_agreed_or_said_to_be_a_node_s_own() -> None:
    for config, lists in (
        (FlowConfig, (agreed_settings.FLOW, agreed_settings.OWN_FLOW, ("pan",))),
        (DeliveryConfig, (agreed_settings.DELIVERY, agreed_settings.OWN_DELIVERY)),
    ):
        said = [name for names in lists for name in names]
        assert sorted(said) == sorted(field.name for field in fields(config)), (
            "in app/node/agreed_settings.py, in one list or the other"
        )


def test_a_setting_that_differs_is_named_with_both_values() -> None:
    config = dev()
    here, there = agreed_settings.agreed_settings(config), dict(agreed_settings.agreed_settings(config))
    assert differences(here, there) == []
    for changed, named in (
        (replace(config, flow=replace(config.flow, hot_window_days=7)), "flow.hot_window_days: 7 here, 30 agreed"),
        (replace(config, flow=replace(config.flow, ahead_max_s=9)), "flow.ahead_max_s: 9 here, 300 agreed"),
        (replace(config, flow=replace(config.flow, pan=PanRule(luhn=False))), "flow.pan.luhn: false here, true agreed"),
        (replace(config, etcd=replace(config.etcd, shards=7)), "etcd.shards: 7 here, 32 agreed"),
        (
            replace(config, delivery=replace(config.delivery, trust_unnamed_alerts=True)),
            "delivery.trust_unnamed_alerts",
        ),
    ):
        (found,) = differences(agreed_settings.agreed_settings(changed), there)
        assert found.startswith(named)


def test_a_node_may_know_one_scheme_more_and_not_one_less() -> None:
    there = agreed_settings.agreed_settings(dev())
    assert differences({**there, "schemes": "gbcs,later"}, there) == []
    assert differences(there, {**there, "schemes": "gbcs,later"}) == [
        "schemes: gbcs here, gbcs,later agreed in the ledger"
    ]
    assert differences(there, {**there, "later.setting": "1"}) == [
        "later.setting: nothing here, 1 agreed in the ledger"
    ]


def test_a_setting_that_older_nodes_do_not_know_costs_no_stop_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record was made by a version that did not have the setting; its nodes live by the default."""
    config = dev()
    config = replace(config, flow=replace(config.flow, ahead_max_s=FlowConfig().ahead_max_s))
    there = {
        name: value for name, value in agreed_settings.agreed_settings(config).items() if name != "flow.ahead_max_s"
    }
    assert len(differences(agreed_settings.agreed_settings(config), there)) == 1, "without the list it is a stop"
    monkeypatch.setattr(agreed_settings, "LATER", frozenset({"flow.ahead_max_s"}))
    assert differences(agreed_settings.agreed_settings(config), there) == []
    other = replace(config, flow=replace(config.flow, ahead_max_s=FlowConfig().ahead_max_s + 1))
    (found,) = differences(agreed_settings.agreed_settings(other), there)
    assert found.startswith("flow.ahead_max_s")
    # Once another value is agreed, a node that still has the default is the one that differs.
    (found,) = differences(agreed_settings.agreed_settings(config), agreed_settings.agreed_settings(other))
    assert found.startswith("flow.ahead_max_s: nothing here")
