"""host:port in every spelling, by the service and by the kit."""

import pytest
from utrn_client.channel import target_of

from core.net.address import Address, parse_address

GOOD = [
    ("node-a.internal:7443", "node-a.internal", 7443),
    ("localhost:0", "localhost", 0),
    ("10.0.0.1:65535", "10.0.0.1", 65535),
    ("[::1]:7443", "::1", 7443),
    ("[fd00::1:2]:7443", "fd00::1:2", 7443),
    ("[::ffff:10.0.0.1]:1", "::ffff:10.0.0.1", 1),
    ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
]
BAD = [
    "", "nowhere", ":7443", "7443", "::1:7443", "fd00::1", "[::1]", "[::1]7443", "[]:1", "[10.0.0.1]:1", "[name]:1",
    "name:", "name:-1", "name:65536", "name:999999", "name:x", "na me:1", "name:1 ", "a:1,b:2", "user@name:1",
    "name:1/", "name:\u0661",
]  # fmt: skip


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_an_address_is_read_and_written_as_it_was(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert str(parse_address(text)) == text
    assert target_of([text])


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_address_is_refused_by_service_and_kit(text: str) -> None:
    with pytest.raises(ValueError, match=r"api\.listen: "):
        parse_address(text, field="api.listen")
    with pytest.raises(ValueError, match=r"address|host:port"):
        target_of([text])


def test_an_ipv6_address_without_brackets_is_told_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="brackets"):
        parse_address("::1:7443")


@pytest.mark.parametrize(
    ("text", "wildcard"),
    [("0.0.0.0:1", True), ("[::]:1", True), ("127.0.0.1:1", False), ("[::1]:1", False), ("node-a:1", False)],
)
def test_every_address_of_a_machine_is_none_to_be_sent_to(text: str, *, wildcard: bool) -> None:
    assert parse_address(text).wildcard is wildcard


@pytest.mark.parametrize(
    ("nodes", "target"),
    [
        (["node.internal:1"], "node.internal:1"),
        (["10.0.0.1:1"], "ipv4:10.0.0.1:1"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1"], "ipv6:[::1]:1"),
        (["[fd00::1]:1", "[fd00::2]:2"], "ipv6:[fd00::1]:1,[fd00::2]:2"),
        (["10.0.0.1:1", "[fd00::2]:2"], "ipv6:[::ffff:10.0.0.1]:1,[fd00::2]:2"),
    ],
)
def test_the_kit_names_nodes_of_every_kind_to_grpc(nodes: list[str], target: str) -> None:
    assert target_of(nodes) == target


@pytest.mark.parametrize("nodes", [[], ["a:1", "b:2"], ["10.0.0.1:1", "b:2"], ["::1:1", "10.0.0.1:1"]])
def test_several_nodes_by_name_are_refused_by_the_kit(nodes: list[str]) -> None:
    with pytest.raises(ValueError, match="address"):
        target_of(nodes)
