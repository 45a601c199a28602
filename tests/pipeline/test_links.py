from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from pipeline import ids, links
from pipeline.database import Database
from pipeline.links import FILE_SCOPE, Links
from pipeline.models import listen_link
from streaming.links import socket_url
from streaming.tokens import KeyRing
from tests.pipeline.conftest import Seed


@pytest.fixture
def makes() -> Links:
    return Links(KeyRing({"k1": b"k" * 32}, "k1"), base_url="https://n.example", days=30)


@pytest.fixture
def made(database: Database, seed: Seed, makes: Links) -> tuple[str, str]:
    """The key and the link of an episode."""
    tenant_id = seed.tenant()
    key = ids.session_key()
    episode_id = seed.episode(tenant_id, seed.endpoint(tenant_id), key=key)
    with database.write() as connection:
        return key, makes.create(connection, episode_id=episode_id, key=key)


def test_a_link_carries_a_token_for_its_episode_and_no_other(
    made: tuple[str, str], makes: Links
) -> None:
    key, url = made
    _socket, token = socket_url(url)
    grant = makes.ring.verify(token, now=time.time())

    assert grant.covers(key)
    assert not grant.covers(ids.session_key())
    assert grant.role == "listener"
    assert 29 * 86_400 < grant.expires - time.time() < 31 * 86_400


def test_the_same_row_gives_the_same_link_each_time(
    database: Database, made: tuple[str, str], makes: Links
) -> None:
    key, url = made
    with database.read() as connection:
        row = connection.execute(sa.select(listen_link)).one()

    assert makes.url(row, key) == url


def test_a_revoked_link_is_known_as_such(database: Database, made: tuple[str, str]) -> None:
    with database.read() as connection:
        link_id = connection.execute(sa.select(listen_link.c.id)).scalar_one()
    before = links.status(database, link_id)

    assert links.revoke(database, link_id) is True
    assert links.revoke(database, link_id) is False
    after = links.status(database, link_id)
    assert before is not None and not before.revoked
    assert after is not None and after.revoked
    assert links.status(database, ids.ulid()) is None


def test_a_file_address_holds_a_ticket_for_files_only(makes: Links) -> None:
    url = makes.file_url("ses_a", "mp3", now_s=1000.0, hours=1)
    address, _, ticket = url.partition("?ticket=")
    grant = makes.ring.verify(ticket, now=1000.0)

    assert address == "https://n.example/episodes/ses_a.mp3"
    assert grant.covers("ses_a")
    assert FILE_SCOPE in grant.scopes
    assert grant.expires == 4600
