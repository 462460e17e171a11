"""Which settings must be alike: every one is said to be agreed_settings, or a node's own."""

from dataclasses import fields, replace
from pathlib import Path

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
