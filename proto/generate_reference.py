"""Makes docs/reference/api.md, every service of utrn.v1 with its methods and fields, from the comments of the contract.

python generate_reference.py DESCRIPTOR_SET FOLDER

DESCRIPTOR_SET is what `protoc --include_imports --include_source_info` wrote; FOLDER is the project's. Run by
generate.sh; CI fails on a difference.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

_PACKAGE = "utrn.v1"
# Field numbers of descriptor.proto.
_MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD = 4, 5, 6, 2, 2, 2
_FIRST = "top_up_service.proto"
# Has a page of its own.
_REASONS = "ErrorReason"
_HEAD = """# The callers' contract: reference

Generated from `proto/utrn/v1` by `make proto`; what an error means for the money is in [errors.md](../errors.md), how
to call in [integration](../integration/README.md). Times are `google.protobuf.Timestamp`, amounts pence.
"""
_TYPES = descriptor_pb2.FieldDescriptorProto


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(place.path): "\n".join(line.removeprefix(" ") for line in place.leading_comments.strip("\n").split("\n"))
        for place in file.source_code_info.location
        if place.leading_comments
    }


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type_of(field: descriptor_pb2.FieldDescriptorProto) -> str:
    name = field.type_name.removeprefix(f".{_PACKAGE}.").removeprefix(".google.protobuf.")
    plain = name or _TYPES.Type.Name(field.type).removeprefix("TYPE_").lower()
    if plain.endswith("Entry"):
        return "map of string to string"
    if plain == _REASONS:
        return f"[{plain}](../errors.md)"
    # The fields of a request are shown under its method.
    heading = plain.removesuffix("Request").lower()
    shown = f"[{plain}](#{heading})" if field.type_name.startswith(f".{_PACKAGE}.") else plain
    if field.label == _TYPES.LABEL_REPEATED:
        return f"{shown}, repeated"
    return f"{shown}, optional" if field.proto3_optional else shown


def _fields(message: descriptor_pb2.DescriptorProto, at: int, comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    if not message.field:
        yield "No fields."
        return
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    for number, field in enumerate(message.field):
        yield f"| `{field.name}` | {_type_of(field)} | {_flat(comments[(_MESSAGE, at, _FIELD, number)])} |"


def _service(file: descriptor_pb2.FileDescriptorProto, spoken_for: set[str]) -> Iterator[str]:
    comments = _comments(file)
    messages = {message.name: (at, message) for at, message in enumerate(file.message_type)}
    for at, service in enumerate(file.service):
        yield f"\n## {service.name}\n\n{comments[(_SERVICE, at)]}"
        for number, method in enumerate(service.method):
            streams = " (a stream)" if method.server_streaming else ""
            yield f"\n### {method.name}{streams}\n\n{comments[(_SERVICE, at, _METHOD, number)]}\n"
            for what, type_name in (("Request", method.input_type), ("Response", method.output_type)):
                name = type_name.removeprefix(f".{_PACKAGE}.")
                place, message = messages[name]
                spoken_for.add(name)
                yield f"{what}:\n"
                yield from _fields(message, place, comments)
                yield ""


def _types(files: list[descriptor_pb2.FileDescriptorProto], spoken_for: set[str]) -> Iterator[str]:
    yield "## Types"
    for file in files:
        comments = _comments(file)
        for at, message in enumerate(file.message_type):
            if message.name not in spoken_for:
                yield f"\n### {message.name}\n\n{comments[(_MESSAGE, at)]}\n"
                yield from _fields(message, at, comments)
        for at, enum in enumerate(file.enum_type):
            if enum.name == _REASONS:
                continue
            yield f"\n### {enum.name}\n\n{comments[(_ENUM, at)]}\n"
            yield "| value | meaning |"
            yield "|---|---|"
            for number, value in enumerate(enum.value):
                yield f"| `{value.name}` | {_flat(comments[(_ENUM, at, _VALUE, number)])} |"


def main() -> None:
    """Write the page."""
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    files = [file for file in descriptors.file if file.package == _PACKAGE and not file.name.endswith("outcome.proto")]
    files.sort(key=lambda file: (not file.name.endswith(_FIRST), file.name))
    spoken_for: set[str] = set()
    lines = [_HEAD.rstrip("\n")]
    for file in files:
        lines += _service(file, spoken_for)
    lines += _types(files, spoken_for)
    page = Path(sys.argv[2]) / "docs" / "reference" / "api.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    page.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
