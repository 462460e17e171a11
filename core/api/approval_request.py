"""asked_of: a request that needs two operators, as what is approved: its exact bytes and a sentence for people."""

from google.protobuf.message import Message

from core.domain.approval import Asked

_SUBJECT_MAX = 300


def asked_of(method: str, request: Message, subject: str) -> Asked:
    """Return what `request` of the call `method` asks for; `subject` says what it does, without personal data."""
    return Asked(method=method, request=request.SerializeToString(deterministic=True), subject=subject[:_SUBJECT_MAX])
