"""A node's configuration: the shipped ones load; every mistake is named by its key."""

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from app.node.config import BadConfig, load_config, problems_of
from cluster.config import EtcdConfig, PeersConfig
from core.api.config import ApiConfig
from core.gateways.config import HeadEndConfig
from core.issuing.config import DeliveryConfig, FlowConfig

CONFIGS = Path(__file__).parents[4] / "deploy" / "config"
DEV = (CONFIGS / "dev.toml").read_text()


def load(tmp_path: Path, text: str, **environ: str) -> object:
    file = tmp_path / "node.toml"
    file.write_text(text)
    return load_config(file, environ)


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_shipped_configurations_load(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.toml", {})
    assert config.api.cert.is_absolute()
    assert config.head_ends[0].ca.is_absolute()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(DEV)
    config = load_config(file, {"UTRN_FLOW__HOT_WINDOW_DAYS": "7", "UTRN_NODE__LOG_LEVEL": "DEBUG"})
    assert (config.flow.hot_window_days, config.node.log_level) == (7, "DEBUG")


def test_a_list_in_the_environment_is_written_as_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(DEV)
    config = load_config(file, {"UTRN_ETCD__ENDPOINTS": '["one:2379", "two:2379"]'})
    assert config.etcd.endpoints == ("one:2379", "two:2379")
    with pytest.raises(BadConfig, match="UTRN_ETCD__ENDPOINTS: a list as TOML writes it"):
        load_config(file, {"UTRN_ETCD__ENDPOINTS": "[one:2379]"})


def test_what_ends_a_delivery_in_production_is_its_time_and_not_a_count_of_attempts() -> None:
    """The pauses are of any length up to the cap, half of it on average: twice as many attempts as that needs."""
    delivery = load_config(CONFIGS / "prod.toml", {}).delivery
    assert delivery.attempts_max * delivery.back_off_most_ms / 1000 / 2 >= 2 * delivery.give_up_after_s


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("[flow]", "[flow]\nhot_window = 3", "flow.hot_window"),
        ("[flow]", "[flows]", "flows"),
        ("hot_window_days = 30", "hot_window_days = 0", "flow.hot_window_days: must be 1 to 365"),
        ("hot_window_days = 30", "hot_window_days = 366", "flow.hot_window_days: must be 1 to 365"),
        ("hot_window_days = 30", "counter_trust_s = nan", "flow.counter_trust_s: must be 0 to 86400"),
        ("hot_window_days = 30", 'hot_window_days = "soon"', "flow.hot_window_days"),
        ("unapplied_alarm = 256", "unapplied_alarm = 501", "unapplied_alarm"),
        ("shards = 32", "shards = 0", "shards"),
        ("shards = 32", "keepalive_ms = 900", "keepalive_ms"),
        ("shards = 32", "keepalive_ms = 49", "etcd.keepalive_ms: must be 50 to 20000"),
        ('endpoints = ["127.0.0.1:2379"]', "endpoints = []", "endpoints"),
        ('listen = "127.0.0.1:7443" ', 'listen = "nowhere" ', "listen"),
        ('listen = "127.0.0.1:7443" ', 'listen = "::1:7443" ', "brackets"),
        ('listen = "127.0.0.1:7443" ', 'listen = "0.0.0.0:7443" ', "node.advertise"),
        ('listen = "127.0.0.1:7443" ', 'listen = "[::]:7443" ', "node.advertise"),
        ('advertise = "" ', 'advertise = "0.0.0.0:7443" ', "advertise"),
        ('advertise = "" ', 'advertise = "[::]:7443" ', "advertise"),
        ('advertise = "" ', 'advertise = "node-a.internal:0" ', "advertise"),
        ('metrics = "127.0.0.1:9464" ', 'metrics = "::1:9464" ', "metrics"),
        ('target = "127.0.0.1:7500"', 'target = "7500"', "target"),
        ("connection_age_s = 3600 ", "connection_age_s = 1 ", "connection_age_s"),
        ('node_id = "node-a"', 'node_id = "Node A"', "node_id"),
        ("workers = 2", "workers = 99", "workers"),
        ("attempts_max = 12", "back_off_first_ms = 5000\nback_off_most_ms = 1", "back_off_most_ms"),
        ("[node]", "[node", "not TOML"),
    ],
)
def test_a_mistake_is_named_by_its_key(tmp_path: Path, old: str, new: str, names: str) -> None:
    assert old in DEV
    with pytest.raises(BadConfig) as refused:
        load(tmp_path, DEV.replace(old, new, 1))
    assert names in str(refused.value)


def test_everything_out_of_range_is_named_at_once(tmp_path: Path) -> None:
    text = DEV.replace("hot_window_days = 30", "hot_window_days = 0\nclosings_burst = 0", 1).replace(
        'target = "127.0.0.1:7500"', 'target = "127.0.0.1:7500"\nsilence_max_ms = 1', 1
    )
    with pytest.raises(BadConfig) as refused:
        load(tmp_path, text)
    assert [line.split(": ", 1)[1] for line in str(refused.value).splitlines()] == [
        "flow.hot_window_days: must be 1 to 365",
        "flow.closings_burst: must be 1 to 1000000",
        "head_ends.0.silence_max_ms: must be 500 to 600000",
    ]


@pytest.mark.parametrize("section", [ApiConfig, DeliveryConfig, EtcdConfig, FlowConfig, HeadEndConfig, PeersConfig])
def test_what_is_written_of_a_settings_range_is_what_is_checked(section: type) -> None:
    documented = {
        name: re.search(rf"^ +{name}: (.*(?:\n {{9,}}.*)*)", section.__doc__ or "", re.MULTILINE)
        for name, hint in get_type_hints(section).items()
        if hint in (int, float)
    }
    for name, text in documented.items():
        (interval,) = get_type_hints(section, include_extras=True)[name].__metadata__
        assert text is not None
        assert f"{interval.ge} to {interval.le}" in text[1], name


def test_ipv6_addresses_are_taken_everywhere(tmp_path: Path) -> None:
    text = DEV.replace("127.0.0.1:", "[::1]:").replace('advertise = ""', 'advertise = "[fd00::1]:7443"')
    config = load(tmp_path, text)
    assert config.node.metrics == "[::1]:9464"  # type: ignore[attr-defined]
    load(tmp_path, text.replace('listen = "[::1]:7443"', 'listen = "[::]:7443"'))


def test_missing_files_and_readable_secrets_are_problems(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(DEV)
    (tmp_path / "hsm").mkdir()
    (tmp_path / "hsm" / "pin").write_text("1234")
    (tmp_path / "hsm" / "pin").chmod(0o644)
    problems = "\n".join(problems_of(load_config(file, {})))
    assert "hsm.pin_file" in problems
    assert "chmod 600" in problems


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        load_config(tmp_path / "none.toml", {})
