"""Reads one node's configuration: a TOML file, UTRN_* from the environment over it, and every key checked."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cluster.config import EtcdConfig, PeersConfig
from core.api.config import ApiConfig
from core.domain.errors import BadField
from core.domain.participant import parse_participant_id
from core.gateways.config import HeadEndConfig
from core.issuing.config import DeliveryConfig, FlowConfig
from core.net.address import parse_address
from hsm.config import HsmConfig

_ENVIRONMENT_PREFIX = "UTRN_"
_OUT_OF_RANGE = ("greater_than_equal", "less_than_equal")


class BadConfig(Exception):
    """The configuration cannot be used; every line of the message names a key and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """NodeConfig says who this node is, and in which folders its files are.

    Attributes:
        node_id: Its name in the cluster, 1 to 64 of a-z, 0-9 and "-"; never two alike.
        zone: Where it stands; nodes of one zone may fail together.
        advertise: host:port where callers and peers reach it; empty for what api.listen says, which must then be one
            address: at 0.0.0.0 every node would hear itself in its peers' place.
        trail: Folder for the audit log: who asked for what, and what was decided by which rule.
        metrics: host:port of the Prometheus page; empty for none. Plain HTTP: listen where only the collector comes.
        log_level: DEBUG, INFO, WARNING or ERROR.
    """

    node_id: str
    zone: str = "default"
    advertise: str = ""
    metrics: str = ""
    trail: Path = Path("trail")
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        try:
            parse_participant_id(self.node_id, field="node_id")
        except BadField as error:
            raise ValueError(error.message) from error
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("log_level: must be DEBUG, INFO, WARNING or ERROR")
        for key in ("advertise", "metrics"):
            if getattr(self, key):
                parse_address(getattr(self, key), field=key)
        if self.advertise and not _reachable(self.advertise):
            raise ValueError("advertise: must be one address and port of this node, not every address, nor port 0")


def _reachable(text: str) -> bool:
    address = parse_address(text)
    return not address.wildcard and address.port != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One node's configuration; each part is documented in the package it governs."""

    node: NodeConfig
    api: ApiConfig
    hsm: HsmConfig
    etcd: EtcdConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    delivery: DeliveryConfig = field(default_factory=DeliveryConfig)
    peers: PeersConfig = field(default_factory=PeersConfig)
    head_ends: tuple[HeadEndConfig, ...] = ()

    def __post_init__(self) -> None:
        """Refuse sets that do not fit together."""
        names = [head_end.name for head_end in self.head_ends]
        if len(names) != len(set(names)):
            raise ValueError("head_ends: two have the same name")
        if not self.node.advertise and parse_address(self.api.listen).wildcard:
            raise ValueError(
                f"node.advertise: needed, because api.listen is {self.api.listen}: the host:port at which callers and "
                "peers reach this node"
            )
        if self.flow.batch_max > self.etcd.batch_max:
            raise ValueError("flow.batch_max: must not be above etcd.batch_max")


def load_config(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration of `path`, with `UTRN_SECTION__KEY` from the environment over it; lists are TOML.

    Relative paths are relative to the file's folder.

    Raises:
        BadConfig: names the file, the key and the rule.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not TOML: {error}") from error
    _overlay(raw, environ)
    try:
        config = _adapter().validate_python(raw)
    except ValidationError as error:
        raise BadConfig("\n".join(f"{path}: {line}" for line in _lines(error))) from error
    absolute: Config = _absolute(config, path.resolve().parent)
    return absolute


def _adapter() -> TypeAdapter[Config]:
    """Return the checker. Unknown keys are refused in every section: a misspelt limit must not be a missing one."""
    for section in (
        NodeConfig,
        ApiConfig,
        HsmConfig,
        EtcdConfig,
        FlowConfig,
        DeliveryConfig,
        PeersConfig,
        HeadEndConfig,
        Config,
    ):
        section.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]  # pydantic's own hook
    return TypeAdapter(Config)


def _overlay(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        if name.startswith(_ENVIRONMENT_PREFIX) and "__" in name:
            section, _, key = name.removeprefix(_ENVIRONMENT_PREFIX).lower().partition("__")
            raw.setdefault(section, {})[key] = _list_of(name, value) if value.startswith("[") else value


def _list_of(name: str, value: str) -> Any:
    """Return a list, as TOML writes it: an environment variable has text only."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f'{name}: a list as TOML writes it is needed, such as ["a:1", "b:2"]') from error


def _lines(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(str(part) for part in one['loc']) or 'config'}: "
        + (_allowed(one["loc"]) if one["type"] in _OUT_OF_RANGE else one["msg"].removeprefix("Value error, "))
        for one in error.errors(include_url=False, include_input=False)
    ]


def _allowed(loc: tuple[int | str, ...]) -> str:
    """Return the range of the setting at `loc`, both ends of it: the checker tells only the end that was passed."""
    hint: Any = Config
    for step in loc:
        hint = get_args(hint)[0] if isinstance(step, int) else get_type_hints(hint, include_extras=True)[step]
    (interval,) = hint.__metadata__
    return f"must be {interval.ge} to {interval.le}"


def _absolute(part: Any, folder: Path) -> Any:  # walks any of the parts above
    """Return `part` with every relative path made absolute."""
    if isinstance(part, Path):
        return folder / part
    if isinstance(part, tuple):
        return tuple(_absolute(one, folder) for one in part)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{one.name: _absolute(getattr(part, one.name), folder) for one in fields(part)})
    return part


def problems_of(config: Config) -> list[str]:
    """Return what would keep a node with `config` from its HSM, or from being safe; app.node.tls reads TLS's files."""
    hsm, keys = config.hsm, {"api.key": config.api.key, "etcd.key": config.etcd.key, "peers.key": config.peers.key}
    keys |= {f"head_ends.{head_end.name}.key": head_end.key for head_end in config.head_ends}
    files = {"hsm.module": hsm.module, "hsm.pin_file": hsm.pin_file}
    problems = [f"{key}: {path} is not there" for key, path in files.items() if not path.exists()]
    return problems + [
        f"{key}: {path} can be read by others; chmod 600 it"
        for key, path in {**keys, "hsm.pin_file": hsm.pin_file}.items()
        if _open_to_others(path)
    ]


def _open_to_others(path: Path | None) -> bool:
    return path is not None and path.is_file() and bool(path.stat().st_mode & 0o077)
