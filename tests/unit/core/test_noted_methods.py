"""What every method of a node leaves in the trail, as the server puts the methods together."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import Message
from utrn.admin.v1 import admin_service_pb2, admin_service_pb2_grpc
from utrn.v1 import top_up_service_pb2, top_up_service_pb2_grpc

from core.api import server
from core.api.errors import Context, Guard
from core.ports.notes import Notes

_DECIDED_INSIDE = {"IssueUtrn", "TopUp", "SendTopUp", "CheckEligibility", "GetVend"}
_ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
_TOP_UP = top_up_service_pb2.DESCRIPTOR.services_by_name["TopUpService"]


class _Handlers:
    """A server of which only what is added to it is asked."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        del handlers

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.methods |= {f"{service}.{name}": handler.unary_unary for name, handler in handlers.items()}


def _behind_the_guard(note: Callable[[str, str], None]) -> dict[str, Any]:
    """Return the methods of two services, each answering an empty reply, as a node serves them."""

    def noted(context: Context, method: str, request: Message, outcome: str, notes: Notes) -> None:
        del context, request, notes
        note(method, outcome)

    def answering(name: str) -> Any:
        async def answer(request: Message, context: Context) -> Message:
            return request

        answer.__name__ = name
        return answer

    guard, handlers = Guard(lambda _: None, noted), _Handlers()
    for service, file, add in (
        (_ADMIN, admin_service_pb2, admin_service_pb2_grpc.add_AdminServiceServicer_to_server),
        (_TOP_UP, top_up_service_pb2, top_up_service_pb2_grpc.add_TopUpServiceServicer_to_server),
    ):
        servicer = SimpleNamespace(**{one.name: answering(one.name) for one in service.methods})
        server._add(cast("Any", handlers), add, file, servicer, guard)
    return handlers.methods


@pytest.mark.parametrize("method", [*_ADMIN.methods, *_TOP_UP.methods], ids=lambda one: one.full_name)
async def test_whatever_notes_no_decision_of_its_own_is_noted_when_it_is_allowed(method: Any) -> None:
    seen: list[tuple[str, str]] = []
    answer = _behind_the_guard(lambda name, outcome: seen.append((name, outcome)))[method.full_name]
    await answer(method.input_type._concrete_class(), cast("Context", None))
    inside = method.containing_service is _TOP_UP and method.name in _DECIDED_INSIDE
    assert seen == ([] if inside else [(method.name, "allowed")])
