from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import BadToken, TokenExpired
from streaming.tokens import Grant, KeyRing, token_sid

KEY = b"0123456789abcdef0123456789abcdef"
RING = KeyRing({"k1": KEY}, "k1")
GRANT = Grant(link="lnk_01", role="listener", expires=1_800_000_000, sid="ses_7")
VECTOR = (
    "nc1.eyJrIjoiazEiLCJqIjoibG5rXzAxIiwicyI6InNlc183IiwiciI6Imxpc3RlbmVyIiwieCI6MTgwMDAwMDAwMH0"
    ".3qyeVOmPdwd2JvRowBETIkwq_DlnBTRMtdwJN8eLr78"
)


def test_published_vector_is_made_and_verified() -> None:
    assert RING.sign(GRANT) == VECTOR
    assert RING.verify(VECTOR, now=1_799_999_999) == GRANT
    assert token_sid(VECTOR) == "ses_7"


def test_every_field_of_a_grant_survives() -> None:
    grant = Grant("l", "owner", 9, sid="*", scopes=("gen", "fork"), max_listeners=5, bytes_per_s=9)

    assert RING.verify(RING.sign(grant), now=0) == grant


def test_thirty_seconds_of_skew_are_forgiven() -> None:
    assert RING.verify(VECTOR, now=1_800_000_030) == GRANT
    with pytest.raises(TokenExpired, match="ask for a new one"):
        RING.verify(VECTOR, now=1_800_000_030.5)


@given(st.integers(0, len(VECTOR) - 1), st.sampled_from("AZaz09-_.é "))
def test_an_altered_character_is_noticed(at: int, char: str) -> None:
    altered = VECTOR[:at] + char + VECTOR[at + 1 :]
    if altered == VECTOR:
        return
    # The last character of a base64 text carries unused bits; those are compared as text.
    with pytest.raises(BadToken):
        RING.verify(altered, now=0)


@given(st.text(max_size=100))
def test_any_text_is_refused_with_a_cause(text: str) -> None:
    for token in (text, "nc1." + text, f"nc1.{text}.{text}"):
        with pytest.raises(BadToken) as caught:
            RING.verify(token, now=0)
        assert str(caught.value)


def test_a_previous_key_still_verifies_and_a_dropped_one_does_not() -> None:
    both = KeyRing({"k1": KEY, "k2": KEY[::-1]}, "k2")

    assert both.verify(VECTOR, now=0) == GRANT
    assert both.sign(GRANT) != VECTOR
    with pytest.raises(BadToken, match="no longer in use"):
        KeyRing({"k2": KEY[::-1]}, "k2").verify(VECTOR, now=0)


def test_a_foreign_key_of_the_same_name_is_noticed() -> None:
    with pytest.raises(BadToken, match="does not match"):
        KeyRing({"k1": KEY[::-1]}, "k1").verify(VECTOR, now=0)


def test_weak_or_missing_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="32 are needed"):
        KeyRing({"k1": b"short"}, "k1")
    with pytest.raises(ValueError, match="no key 'k2'"):
        KeyRing({"k1": KEY}, "k2")


def test_a_grant_covers_its_session_or_all() -> None:
    assert GRANT.covers("ses_7")
    assert not GRANT.covers("ses_8")
    assert Grant("l", "owner", 0, sid="*").covers("ses_8")
