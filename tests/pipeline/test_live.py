"""The gateway with the pipeline's knowledge: limits and keys from settings, revocation, audit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline import migrate
from pipeline.live import limits_of, make_gateway
from pipeline.models import audit, listen_link
from pipeline.services import Services, key_ring
from pipeline.settings import Settings
from streaming.errors import BadToken
from streaming.limits import Limits
from streaming.links import socket_url
from streaming.tokens import Grant
from tests.pipeline.house import Bell, House
from tests.streaming.speaking import event, greet, raw, running, send
from tests.streaming.test_gateway_limits import closing


@pytest.fixture
def house(tmp_path: Path, valkey_url: str) -> Iterator[House]:
    services = Services(Settings(data=tmp_path, engine="tone", broker_url=valkey_url))
    migrate.upgrade(services.database)
    vars(services).update(send=Bell())
    yield House(services, Bell())
    services.close()


def test_the_defaults_of_the_settings_are_those_of_the_gateway(tmp_path: Path) -> None:
    assert limits_of(Settings(data=tmp_path)) == Limits()


def token_of(house: House) -> str:
    answer = house.accept("Words.").accepted
    assert answer.listen_url is not None
    return socket_url(answer.listen_url)[1]


def test_a_revoked_link_is_closed_at_once_and_leaves_audit_rows(house: House) -> None:
    services = house.services
    tok = token_of(house)

    async def listen() -> None:
        async with running(make_gateway(services)) as url, raw(url) as ws:
            assert (await greet(ws, tok))["t"] == "welcome"
            await send(ws, t="open", sid="ses_other")
            assert (await event(ws))["code"] == "forbidden"
            (link,) = house.all(listen_link)
            await asyncio.sleep(0.2)  # until it hears the news
            assert await asyncio.to_thread(services.revoke_link, link.id) is True
            assert (await closing(ws))[0] == 4403
            assert await asyncio.to_thread(services.revoke_link, link.id) is False

    asyncio.run(listen())
    services.security_log.close()
    with services.database.read() as connection:
        found = connection.execute(sa.select(audit.c.action, audit.c.object)).all()
    (link,) = house.all(listen_link)
    assert ("live.forbidden", link.id) in found
    assert ("live.revoked", link.id) in found


def test_a_key_can_be_changed_while_its_links_are_about(tmp_path: Path) -> None:
    grant = Grant("lnk_1", "listener", 2_000_000_000, sid="ses_1")
    old = key_ring(tmp_path).sign(grant)

    (tmp_path / "link-key").rename(tmp_path / "link-key.previous")
    changed = key_ring(tmp_path)
    assert changed.verify(old, now=0) == grant
    assert changed.verify(changed.sign(grant), now=0) == grant
    assert changed.sign(grant) != old
    (tmp_path / "link-key.previous").unlink()

    with pytest.raises(BadToken, match="no longer in use"):
        key_ring(tmp_path).verify(old, now=0)
