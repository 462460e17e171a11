"""The compares that keep money right. Each is one function, so that a test can take one away and see what it held."""

from etcdpb import rpc_pb2 as pb

_MOD = pb.Compare.MOD
_TIME_DIGITS = 16


def vend_absent(key: bytes) -> list[pb.Compare]:
    """One id, one code: the vend must not exist yet (INV-1)."""
    return [_equal(pb.Compare.VERSION, key, version=0)]


def counter_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """One counter, one content: the sequence must be where the code's counter was taken from (INV-2)."""
    return [_unmoved(key, revision)]


def authorizing_record_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """A vend is committed only while every record that allowed it is what it was: meter, PAN, supplier, appointment."""
    return [_unmoved(key, revision)]


def record_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """A change of the registry is based on what it has read; 0 says that there was nothing."""
    return [_unmoved(key, revision)]


def anchor_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """What a node knows of its audit file's anchor still holds: a file that was ended stays so."""
    return [_unmoved(key, revision)]


def code_absent(key: bytes) -> list[pb.Compare]:
    """One counter, one vend: no other code of the sequence has this counter (INV-2)."""
    return [_equal(pb.Compare.VERSION, key, version=0)]


def code_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """The counter still belongs to the vend it was found to belong to."""
    return [_unmoved(key, revision)]


def issued_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """What is known to be applied is never above what was issued, as it was read (INV-12)."""
    return [_unmoved(key, revision)]


def vend_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """A vend's next state is based on its last one."""
    return [_unmoved(key, revision)]


def epoch_current(key: bytes, epoch: int) -> list[pb.Compare]:
    """A delivery is written by its shard's owner and by nobody else, however long they believe otherwise (INV-5)."""
    return [_equal(pb.Compare.CREATE, key, create_revision=epoch)]


def owner_unmoved(key: bytes, epoch: int) -> list[pb.Compare]:
    """A shard is given up only by the owner that has it."""
    return [_equal(pb.Compare.CREATE, key, create_revision=epoch)]


def consent_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """What needs two operators is done once, while the approval and both of them are what they were."""
    return [_unmoved(key, revision)]


def ceiling_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """What nodes draw of a seller's hour is never, in all, above its ceiling (INV-16)."""
    return [_unmoved(key, revision)]


def applied_unmoved(key: bytes, revision: int) -> list[pb.Compare]:
    """What is known to be applied only rises."""
    return [_unmoved(key, revision)]


def time_reached(key: bytes, at: int) -> list[pb.Compare]:
    """What must not happen before an instant happens only once cluster time, in the ledger, has come to it."""
    # etcd knows greater, not greater or equal; a key that is not there is never greater.
    return [pb.Compare(result=pb.Compare.GREATER, target=pb.Compare.VALUE, key=key, value=time_value(at - 1))]


def time_before(key: bytes, at: int) -> list[pb.Compare]:
    """What was allowed up to an instant happens only while cluster time, in the ledger, is before it."""
    return [pb.Compare(result=pb.Compare.LESS, target=pb.Compare.VALUE, key=key, value=time_value(at))]


def time_unmoved(key: bytes, revision: int, at: int) -> list[pb.Compare]:
    """Cluster time is set forward from where it was heard to be, and only forward; revision 0 says that it was not."""
    return [_unmoved(key, revision), *(time_before(key, at) if revision else ())]


def time_value(at: int) -> bytes:
    """Return an instant in milliseconds as it is kept: of one width, so that etcd's compare of bytes is one of time."""
    return b"%0*d" % (_TIME_DIGITS, max(0, at))


def time_of(value: bytes) -> int | None:
    """Return the instant that `time_value` wrote; None if it wrote no such thing."""
    return int(value) if len(value) == _TIME_DIGITS and value.isdigit() else None


def absent(key: bytes) -> list[pb.Compare]:
    """The key does not exist yet: a claim, or a value that is written once."""
    return [_equal(pb.Compare.VERSION, key, version=0)]


def _unmoved(key: bytes, revision: int) -> pb.Compare:
    # EQUAL is what is compared for if nothing is said; every vend makes several of these.
    return pb.Compare(target=_MOD, key=key, mod_revision=revision)


def _equal(target: pb.Compare.CompareTarget.ValueType, key: bytes, **union: int) -> pb.Compare:
    return pb.Compare(result=pb.Compare.EQUAL, target=target, key=key, **union)  # type: ignore[arg-type]
