from __future__ import annotations

import re
import time

from pipeline import ids


def test_a_ulid_has_the_published_form() -> None:
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", ids.ulid())


def test_ulids_sort_by_the_millisecond_they_were_made_in() -> None:
    made = []
    for _ in range(20):
        made.append(ids.ulid())
        time.sleep(0.002)

    assert made == sorted(made)


def test_names_do_not_repeat() -> None:
    assert len({ids.ulid() for _ in range(10_000)}) == 10_000
    assert len({ids.session_key() for _ in range(10_000)}) == 10_000


def test_public_names_have_the_form_that_the_protocol_promises() -> None:
    assert re.fullmatch(r"ses_[a-z2-7]{20}", ids.session_key())
    assert re.fullmatch(r"[a-z2-7]{10}", ids.slug())


def test_a_secret_can_stand_in_an_address() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", ids.secret())
