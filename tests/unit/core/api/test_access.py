"""The table of who may call what: every method of a node has a row, and no row is without a method."""

from core.api.access import ACCESS
from core.domain.participant import Role
from tests.support.requests import ANSWERED
from tests.support.served import METHODS


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert ACCESS.keys() == METHODS.keys()


def test_no_request_but_a_load_may_be_large() -> None:
    large = {path: access.bytes_max for path, access in ACCESS.items() if access.bytes_max > 32_768}
    assert large == {
        "/utrn.v1.RegistryService/LoadRecords": 2_097_152,
        "/utrn.v1.PanService/ReconcilePans": 131_072,
    }


def test_requests_that_are_answered_have_room() -> None:
    rooms = {path.rpartition("/")[2]: access.bytes_max for path, access in ACCESS.items()}
    for method, requests in ANSWERED.items():
        for _, request in requests:
            assert request.ByteSize() < rooms[method] / 2


def test_nobody_but_nodes_hears_their_hearts_and_nobody_but_operators_administers() -> None:
    for path, access in ACCESS.items():
        if ".peer." in path:
            assert (access.roles, access.nodes) == (frozenset(), True)
        if ".admin." in path:
            assert access.roles == {Role.OPERATOR}
