"""Known answers through the real path: a scratch token, imported keys, worker processes, the scheme."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from core.domain.errors import UtrnError
from core.domain.meter import MeterId, parse_eui64
from core.domain.participant import SupplierKey
from core.domain.utrn import COUNTER_MAX, Counter, Utrn
from core.domain.utrn_value import CodeValue, ValueClass
from core.gateways.system_clock import SystemClock
from core.ports.signer import SignRequest
from hsm.ceremony import init_token, new_pin_file, store_scalar
from hsm.config import HsmConfig, find_softhsm
from hsm.schemes.gbcs import counter_of
from hsm.signer import HsmSigner

FORMAT = "utrn-conformance/1"
_VALUE_MAX = 8191
_BATCH = 64


class BadVectorFile(Exception):
    """The file is not one this command can compute."""


def run_conformance(file: Path, module: Path | None = None) -> tuple[list[str], int]:
    """Return one sentence per vector that failed, and how many passed.

    Raises:
        BadVectorFile: not a file of this format, or of an algorithm that is not here.
        FileNotFoundError: there is no PKCS#11 library.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found, algorithm, vectors = content["format"], content["algorithm"], list(content["vectors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadVectorFile(f"{file}: not a {FORMAT} file ({type(error).__name__}: {error})") from error
    if found != FORMAT or algorithm != "gbcs":
        raise BadVectorFile(f"{file}: format {found!r}, algorithm {algorithm!r}; {FORMAT} with gbcs is known here")
    with tempfile.TemporaryDirectory(prefix="utrn-conformance-") as folder:
        config = scratch_token(Path(folder), module)
        now = SystemClock().now()
        try:
            for originator_id, keys in content["originators"].items():
                scalar = int(keys["prepayment_private_scalar_hex"], 16)
                store_scalar(config, scalar, key_id=originator_id, label=originator_id, now=now)
        except (ValueError, KeyError, TypeError) as error:
            raise BadVectorFile(f"{file}: originators: {error}") from error
        answers = asyncio.run(_compute(config, content, vectors))
    failures = [
        f"vector {number}: {problem}"
        for number, (vector, answer) in enumerate(zip(vectors, answers, strict=True), start=1)
        if (problem := _problem(vector, answer)) is not None
    ]
    return failures, len(vectors) - len(failures)


def scratch_token(folder: Path, module: Path | None = None) -> HsmConfig:
    """Return the configuration of a new SoftHSM token in `folder`, which must be empty."""
    (folder / "tokens").mkdir(mode=0o700)
    conf = folder / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    config = HsmConfig(
        module=module or find_softhsm(),
        token_label="utrn",  # noqa: S106  # a label
        pin_file=folder / "pin",
        softhsm_conf=conf,
        workers=1,
    )
    new_pin_file(config.pin_file)
    new_pin_file(folder / "so-pin")
    init_token(config, folder / "so-pin", now=SystemClock().now())
    return config


async def _compute(config: HsmConfig, content: dict[str, Any], vectors: list[Any]) -> list[Utrn | Exception]:
    answers: list[Utrn | Exception] = []
    requests: list[SignRequest] = []
    for vector in vectors:
        try:
            requests.append(_request(content, vector))
            answers.append(Utrn(""))
        except (ValueError, KeyError, TypeError, UtrnError) as error:
            answers.append(error)
    signer = HsmSigner(config)
    await signer.start()
    try:
        codes: list[Utrn | UtrnError] = []
        for at in range(0, len(requests), _BATCH):
            codes.extend(await signer.sign(requests[at : at + _BATCH]))
    finally:
        await signer.close()
    signed = iter(codes)
    return [next(signed) if answer == "" else answer for answer in answers]


def _request(content: dict[str, Any], vector: dict[str, Any]) -> SignRequest:
    """Return what a vector asks for.

    Raises:
        ValueError, KeyError, TypeError, BadField: it asks for what no code can be.
    """
    originator_id = parse_eui64(vector["originator_id"], field="originator_id")
    device_id = parse_eui64(vector["device_id"], field="device_id")
    counter = counter_of(vector["originator_counter"]) if "originator_counter" in vector else vector["utrn_counter"]
    if not isinstance(counter, int) or not 0 <= counter <= COUNTER_MAX:
        raise ValueError("utrn_counter: must be 0 to 4294967295")
    if vector["unit"] not in ("pence", "pounds"):
        raise ValueError("unit: pence or pounds; value classes 2 and 3 carry no credit")
    if not isinstance(vector["value"], int) or not 0 <= vector["value"] <= _VALUE_MAX:
        raise ValueError("value: must be 0 to 8191")
    originator = content["originators"][originator_id]
    return SignRequest(
        scheme=content["algorithm"],
        key=SupplierKey(
            originator_id=originator_id,
            key_id=originator_id,
            public_point=bytes.fromhex(originator["prepayment_public_point_hex"]),
        ),
        meter_id=MeterId(device_id),
        meter_point=bytes.fromhex(content["devices"][device_id]["public_point_hex"]),
        counter=Counter(counter),
        value=CodeValue(ValueClass[vector["unit"].upper()], vector["value"]),
    )


def _problem(vector: Any, answer: Utrn | Exception) -> str | None:  # whatever the file holds
    """Return what is wrong with an answer; None if it is the known one."""
    if isinstance(answer, Exception):
        return f"refused: {type(answer).__name__}: {answer}"
    return None if answer == vector.get("utrn") else f"{answer} computed, {vector.get('utrn')} known"
