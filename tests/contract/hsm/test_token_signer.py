"""What every TokenSigner keeps: the fake in software, the real one over SoftHSM; and what the key test holds."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pkcs11
import pytest

from core.domain.errors import HsmUnavailable, KeyMissing, NotSupportedByMeter
from core.gateways.system_clock import SystemClock
from core.ports.signer import TokenSigner
from hsm import session as hsm_session
from hsm.ceremony import store_scalar
from hsm.errors import HsmRefused
from hsm.signer import HsmSigner
from sandbox.codes import mac_is_right, read_token, shared_secret
from tests.fakes.signer import FakeSigner
from tests.support.hsm_keys import (
    CONTENT,
    REQUESTS,
    SCALARS,
    children,
    destroy_key,
    make_token,
    running,
    until_ready,
)
from tests.support.patience import PATIENCE_S

FIRST, SECOND = SCALARS


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
async def signer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TokenSigner]:
    if request.param == "fake":
        yield FakeSigner(SCALARS)
        return
    async with running(make_token(tmp_path / "token")) as real:
        yield real


async def test_every_known_answer_comes_out_in_order(signer: TokenSigner) -> None:
    assert await signer.sign(REQUESTS) == [vector["utrn"] for vector in CONTENT["vectors"]]


async def test_the_same_request_gives_the_same_digits(signer: TokenSigner) -> None:
    assert await signer.sign(REQUESTS[:1] * 3) == [CONTENT["vectors"][0]["utrn"]] * 3


async def test_a_missing_key_fails_its_own_request_only(signer: TokenSigner) -> None:
    stranger = replace(REQUESTS[0], key=replace(REQUESTS[0].key, key_id="ff"))
    first, missing, last = await signer.sign([REQUESTS[0], stranger, REQUESTS[1]])
    assert isinstance(missing, KeyMissing)
    assert [first, last] == [vector["utrn"] for vector in CONTENT["vectors"][:2]]


async def test_a_key_that_is_not_the_registered_one_signs_nothing(signer: TokenSigner) -> None:
    other = next(request.key.public_point for request in REQUESTS if request.key.key_id != REQUESTS[0].key.key_id)
    (answer,) = await signer.sign([replace(REQUESTS[0], key=replace(REQUESTS[0].key, public_point=other))])
    assert isinstance(answer, KeyMissing)


async def test_an_unknown_scheme_and_a_broken_meter_key_are_refused(signer: TokenSigner) -> None:
    unknown, broken = await signer.sign(
        [replace(REQUESTS[0], scheme="none"), replace(REQUESTS[0], meter_point=b"\x04" + bytes(64))]
    )
    assert isinstance(unknown, NotSupportedByMeter)
    assert isinstance(broken, NotSupportedByMeter)


def verifies(utrn: str, vector: dict[str, Any], *, device: str | None = None, originator: str | None = None) -> bool:
    """Return whether a meter takes a code, by the sandbox's own reckoning."""
    device_id, originator_id = device or vector["device_id"], originator or vector["originator_id"]
    scalar = int(CONTENT["devices"][device_id]["private_scalar_hex"], 16)
    point = bytes.fromhex(CONTENT["originators"][originator_id]["prepayment_public_point_hex"])
    return mac_is_right(
        read_token(utrn),
        secret=shared_secret(scalar, point),
        originator_id=originator_id,
        meter_id=device_id,
        originator_counter=vector["utrn_counter"] << 32,
    )


async def test_a_code_verifies_at_its_own_meter_under_its_own_key_only(signer: TokenSigner) -> None:
    vector = CONTENT["vectors"][0]
    (utrn,) = await signer.sign([REQUESTS[0]])
    other_device = next(one for one in CONTENT["devices"] if one != vector["device_id"])
    other_key = next(scalar for scalar in SCALARS if scalar != vector["originator_id"])
    assert verifies(str(utrn), vector)
    assert not verifies(str(utrn), vector, device=other_device)
    assert not verifies(str(utrn), vector, originator=other_key)


@pytest.mark.real
async def test_a_killed_worker_is_replaced_and_no_wrong_code_comes_out(tmp_path: Path) -> None:
    async with running(make_token(tmp_path / "token", workers=1)) as signer:
        await signer.sign(REQUESTS[:1])
        os.kill(children()[-1], signal.SIGKILL)
        for answer, vector in zip(await signer.sign(REQUESTS), CONTENT["vectors"], strict=True):
            assert isinstance(answer, HsmUnavailable) or answer == vector["utrn"]
        await until_ready(signer)
        assert await signer.sign(REQUESTS) == [vector["utrn"] for vector in CONTENT["vectors"]]


@pytest.mark.real
async def test_a_wrong_pin_is_tried_once_and_refuses_to_start(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token")
    config.pin_file.write_text("not the pin\n")
    signer = HsmSigner(config)
    with pytest.raises(HsmRefused, match=r"hsm\.pin_file"):
        await signer.start()
    await signer.close()


async def _sign_after_keys_changed_places(folder: Path) -> tuple[object, str]:
    """Under the first supplier's key id the HSM now has the second's key; return the answer and the right code."""
    shuffled = {FIRST: SCALARS[SECOND], SECOND: SCALARS[FIRST]}
    index = next(n for n, one in enumerate(REQUESTS) if one.key.key_id == FIRST)
    config = make_token(folder, shuffled, workers=1)
    # In this process, so that a test can take the known-answer test away.
    session = hsm_session.HsmSession(config)
    from hsm.worker import _sign

    request = REQUESTS[index]
    work = (
        request.scheme, request.key.key_id, request.key.public_point, request.key.originator_id, request.meter_id,
        request.meter_point, int(request.counter), int(request.value.value_class), request.value.value,
    )  # fmt: skip
    answer = _sign(session, work)
    return answer, CONTENT["vectors"][index]["utrn"]


@pytest.mark.real
async def test_keys_that_changed_places_are_found_out(tmp_path: Path) -> None:
    answer, _ = await _sign_after_keys_changed_places(tmp_path / "token")
    assert isinstance(answer, KeyMissing)


@pytest.mark.real
async def test_without_the_known_answer_test_a_wrong_code_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hsm_session.HsmSession, "_prove", lambda *_: None)
    answer, right = await _sign_after_keys_changed_places(tmp_path / "token")
    assert isinstance(answer, str)
    assert answer != right


@pytest.mark.real
def test_neither_key_nor_secret_comes_out_of_the_hsm(tmp_path: Path) -> None:
    session = hsm_session.HsmSession(make_token(tmp_path / "token"))
    request = REQUESTS[0]
    private = session._private_key(request.key.key_id, request.key.public_point)
    secret = session._secret(request.key.key_id, request.key.public_point, request.meter_point)
    for hidden in (private, secret):
        with pytest.raises(pkcs11.exceptions.PKCS11Error):
            _ = hidden[pkcs11.Attribute.VALUE]


@pytest.mark.real
async def test_keys_are_proven_before_they_are_needed_and_missing_ones_are_named(tmp_path: Path) -> None:
    async with running(make_token(tmp_path / "token")) as signer:
        stranger = replace(REQUESTS[0].key, key_id="ff")
        assert await signer.has_key(REQUESTS[0].key)
        assert await signer.has_key(stranger) is False
        assert signer.ready


@pytest.mark.real
async def test_a_key_that_was_there_and_is_gone_is_this_nodes_trouble_and_not_the_callers(tmp_path: Path) -> None:
    config = make_token(tmp_path / "right", workers=1)
    shuffled = make_token(tmp_path / "shuffled", {FIRST: SCALARS[SECOND], SECOND: SCALARS[FIRST]})
    tokens = tmp_path / "right" / "tokens"
    async with running(config) as signer:
        await signer.sign(REQUESTS[:1])
        # The HSM is reset under the same name, with the keys in each other's places.
        tokens.rename(tmp_path / "away")
        (tmp_path / "shuffled" / "tokens").rename(tokens)
        config.pin_file.write_text(shuffled.pin_file.read_text())
        os.kill(children()[-1], signal.SIGKILL)
        answers = [await signer.sign(REQUESTS[:1])]
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(one, KeyMissing) for one in answers[-1]):
                answers.append(await signer.sign(REQUESTS[:1]))
                await asyncio.sleep(0.02)
        # Both may be repeated at another node, and neither is final.
        assert all(isinstance(one, HsmUnavailable | KeyMissing) for batch in answers for one in batch)
        assert signer.doubted() == {REQUESTS[0].key}
        assert signer.doubted() == set()


@pytest.mark.real
async def test_a_key_that_is_taken_away_or_comes_back_is_found_out_without_a_sale(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token", workers=1)
    key = REQUESTS[0].key
    async with running(config) as signer:
        assert await signer.has_key(key)
        destroy_key(config, key.key_id)
        assert await signer.has_key(key) is False
        store_scalar(config, SCALARS[FIRST], key_id=key.key_id, label="again", now=SystemClock().now())
        assert await signer.has_key(key)
        assert await signer.sign(REQUESTS[:1]) == [CONTENT["vectors"][0]["utrn"]]


@pytest.mark.real
async def test_looking_for_keys_refuses_no_sale(tmp_path: Path) -> None:
    async with running(make_token(tmp_path / "token", workers=1)) as signer:
        async with asyncio.TaskGroup() as tasks:
            looking = [tasks.create_task(signer.has_key(request.key)) for request in REQUESTS * 5]
            await asyncio.sleep(0)
            signing = [tasks.create_task(signer.sign([request])) for request in REQUESTS[:1]]
        assert [one.result() for one in signing] == [[CONTENT["vectors"][0]["utrn"]]]
        assert all(one.result() is not None for one in looking)
