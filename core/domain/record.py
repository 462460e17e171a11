"""Versioned and Ref: a record of the registry with its revision, and how records are named."""

from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

_R = TypeVar("_R", covariant=True)


class Kind(StrEnum):
    """Kinds of records; also how their keys are spelled."""

    PARTICIPANT = "participant"
    METER = "meter"
    PAN = "pan"
    APPOINTMENT = "appointment"
    MODEL = "model"
    CHANGE = "change"
    CREDIT = "credit"
    CREDIT_DAY = "credit-day"
    IDENTITY = "identity"
    ORIGINATOR = "originator"
    DUE = "due"
    APPROVAL = "approval"


class Ref(NamedTuple):
    """Names one record: its kind and its id."""

    kind: Kind
    id: str


class Versioned(NamedTuple, Generic[_R]):
    """A record and the revision of the ledger that wrote it."""

    record: _R
    revision: int


# What a decision was based on: every record and its revision. The commit compares them all.
ReadSet = tuple[tuple[Ref, int], ...]
