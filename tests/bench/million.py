"""A million meters and PANs in a node's copy of the registry, without an etcd to read them from."""

from etcdpb import rpc_pb2 as pb

from cluster.codec.registry import name_of, value_of
from cluster.etcd.keys import Keys
from cluster.registry.snapshot import RegistrySnapshot
from core.domain.meter import MeterId, Pan
from core.ports.registry import Registry, StoredRecord
from tests.support.vends import APPOINTMENTS, PSP, SUPPLIER, card, meter

_MODEL_PAN, _MODEL_METER = Pan("9" * 19), MeterId("f" * 16)


def meter_of(number: int) -> MeterId:
    """Return the id of a meter by its number."""
    return MeterId(f"00db13{number:010x}")


def pan_of(number: int) -> Pan:
    """Return the PAN of a meter by its number."""
    return Pan(f"98261{number:014d}")


def million_meters(keys: Keys, copy: RegistrySnapshot, count: int) -> Registry:
    """Fill `copy` with a supplier, its appointed PSP, and `count` meters with a PAN each; return it."""
    revision = 2
    for record in (SUPPLIER, PSP, APPOINTMENTS):
        _apply(keys, copy, record, revision)
    # Records of one length are one another's bytes but for their ids: made so, a million take seconds, not minutes.
    some_meter, some_card = value_of(meter(_MODEL_METER)), value_of(card(_MODEL_PAN, _MODEL_METER))
    old_meter, old_pan = _MODEL_METER.encode(), _MODEL_PAN.encode()
    for number in range(count):
        meter_id, pan = meter_of(number), pan_of(number)
        for record_id, kind, value in (
            (meter_id, "meter", some_meter.replace(old_meter, meter_id.encode())),
            (pan, "pan", some_card.replace(old_meter, meter_id.encode()).replace(old_pan, pan.encode())),
        ):
            revision += 1
            key = f"{keys.prefix}registry/{kind}/{record_id}".encode()
            copy.apply(pb.KeyValue(key=key, value=value, mod_revision=revision), gone=False)
    return copy


def _apply(keys: Keys, copy: RegistrySnapshot, record: StoredRecord, revision: int) -> None:
    key = keys.record(*name_of(record))
    copy.apply(pb.KeyValue(key=key, value=value_of(record), mod_revision=revision), gone=False)
