"""Signatures: frozen vectors, the reference implementation as judge, hostile input."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import Rejected
from connectors.signing import sign_webhook, verify_bearer, verify_webhook, webhook_key

SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="
OTHER = "whsec_" + base64.b64encode(b"another secret, 27 bytes...").decode()
AT = 1_700_000_000
NOW = datetime.fromtimestamp(AT, UTC)
BODY = b'{"type":"note.ready"}'

_SEED = bytes(range(32))
_PUBLIC = Ed25519PrivateKey.from_private_bytes(_SEED).public_key().public_bytes_raw()
PRIVATE = "whsk_" + base64.b64encode(_SEED).decode()
PUBLIC = "whpk_" + base64.b64encode(_PUBLIC).decode()


def verify(headers: dict[str, str], *secrets: str, body: bytes = BODY, now: datetime = NOW) -> str:
    return verify_webhook([webhook_key(s) for s in secrets or (SECRET,)], headers, body, now=now)


def test_frozen_vector():
    headers = sign_webhook(SECRET, "msg_demo1", AT, BODY)

    assert headers == {
        "webhook-id": "msg_demo1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1,ENjeT0d1R3GQLmsv7EBdp8wdQDeepRpZ64JaGSS325k=",
    }
    assert verify(headers) == "msg_demo1"


def test_ed25519_is_signed_with_the_private_and_verified_with_the_public_key():
    headers = sign_webhook(PRIVATE, "msg_1", AT, BODY)

    assert headers["webhook-signature"].startswith("v1a,")
    assert verify(headers, PUBLIC) == "msg_1"
    with pytest.raises(Rejected):
        verify(headers, PUBLIC, body=BODY + b" ")
    with pytest.raises(ValueError, match="only verifies"):
        sign_webhook(PUBLIC, "msg_1", AT, BODY)


def test_private_key_may_carry_its_public_half():
    both = "whsk_" + base64.b64encode(_SEED + _PUBLIC).decode()

    assert sign_webhook(both, "m", AT, BODY) == sign_webhook(PRIVATE, "m", AT, BODY)


def test_either_side_may_change_its_secret_first():
    old, new = sign_webhook(OTHER, "m", AT, BODY), sign_webhook(SECRET, "m", AT, BODY)
    both = {
        **new,
        "webhook-signature": f"{old['webhook-signature']} {new['webhook-signature']}",
    }

    assert verify(old, SECRET, OTHER) == verify(new, SECRET, OTHER) == "m"
    assert verify(both, SECRET) == verify(both, OTHER) == "m"


@pytest.mark.parametrize(
    ("age_s", "fits"), [(300, True), (-300, True), (301, False), (-301, False)]
)
def test_tolerance_is_five_minutes_both_ways(age_s: int, fits: bool):
    headers = sign_webhook(SECRET, "m", AT, BODY)
    now = NOW + timedelta(seconds=age_s)

    if fits:
        assert verify(headers, now=now) == "m"
    else:
        with pytest.raises(Rejected, match="tolerance"):
            verify(headers, now=now)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "other"},
        {"webhook-id": "a.b"},
        {"webhook-id": ""},
        {"webhook-id": "x" * 129},
        {"webhook-id": "mé"},
        {"webhook-timestamp": "1700000001"},
        {"webhook-timestamp": "1700000000.0"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "٣٣"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": "v2,ENjeT0d1R3GQLmsv7EBdp8wdQDeepRpZ64JaGSS325k="},
        {"webhook-signature": "v1a,ENjeT0d1R3GQLmsv7EBdp8wdQDeepRpZ64JaGSS325k="},
        {"webhook-signature": ", ,, v1,AAAA"},
    ],
)
def test_changed_header_is_rejected(change: dict[str, str]):
    with pytest.raises(Rejected):
        verify({**sign_webhook(SECRET, "msg_demo1", AT, BODY), **change})


def test_every_flipped_bit_of_the_body_is_rejected():
    headers = sign_webhook(SECRET, "m", AT, BODY)
    for bit in range(len(BODY) * 8):
        flipped = bytearray(BODY)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejected):
            verify(headers, body=bytes(flipped))


@given(body=st.text().map(str.encode), msg_id=st.from_regex(r"[!-\-/-~]{1,128}", fullmatch=True))
def test_the_reference_accepts_what_we_sign_and_we_what_it_signs(body: bytes, msg_id: str):
    judge = standardwebhooks.Webhook(SECRET)
    now = datetime.now(UTC)
    ours = sign_webhook(SECRET, msg_id, int(now.timestamp()), body)
    theirs = {**ours, "webhook-signature": judge.sign(msg_id, now, body.decode())}

    judge.verify(body, ours, json_parse=False)
    assert verify(theirs, body=body, now=now) == msg_id
    assert theirs == ours


@settings(max_examples=300)
@given(
    headers=st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "authorization"]),
        st.text(max_size=60) | st.sampled_from(["1700000000", "v1,AAAA", "v1a,AAAA", "Bearer x"]),
    ),
    body=st.binary(max_size=60),
)
def test_hostile_headers_are_rejected_and_nothing_else(headers: dict[str, str], body: bytes):
    with pytest.raises(Rejected):
        verify(headers, SECRET, PUBLIC, body=body)
    with pytest.raises(Rejected):
        verify_bearer(["the right token"], headers)


def test_bearer_accepts_the_current_and_the_previous_token():
    verify_bearer(["new-token", "old-token"], {"authorization": "Bearer old-token"})
    verify_bearer(["new-token", "old-token"], {"authorization": "bearer  new-token "})
    with pytest.raises(Rejected):
        verify_bearer(["new-token"], {"authorization": "Basic new-token"})


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_AAAA", "whpk_AAAA", "whsec_%%%"])
def test_bad_secret_is_refused_without_showing_it(secret: str):
    with pytest.raises(ValueError, match="openssl rand") as caught:
        webhook_key(secret)

    assert not secret or len(secret) < 7 or secret not in str(caught.value)


def test_key_never_shows_its_secret():
    assert "bm90ZWNh" not in repr(webhook_key(SECRET))
