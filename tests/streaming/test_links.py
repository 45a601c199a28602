from __future__ import annotations

import asyncio

import pytest

from streaming.errors import LinkRevoked, ListenError
from streaming.links import STATUS_KEEP_S, LinkBook, LinkStatus, listen_url, socket_url
from tests.streaming.speaking import RING


def test_a_link_is_taken_apart_into_socket_and_token() -> None:
    link = listen_url("https://notes.example/", "weekly sync/7", "nc1.a.b")

    assert link == "https://notes.example/l/weekly%20sync%2F7#t=nc1.a.b"
    assert socket_url(link) == ("wss://notes.example/v1/live", "nc1.a.b")
    assert socket_url("http://h:8080/deep/l/x#t=T") == ("ws://h:8080/deep/v1/live", "T")


@pytest.mark.parametrize(
    "link", ["", "weekly", "ftp://h/l/x#t=T", "https://h/l/x", "https://h/l/x#T"]
)
def test_what_is_no_link_is_refused_with_an_example(link: str) -> None:
    with pytest.raises(ListenError, match="#t="):
        socket_url(link)


def test_status_is_asked_once_in_five_seconds() -> None:
    now, asked = [1000.0], []

    def status(link: str) -> LinkStatus:
        asked.append(link)
        return LinkStatus(revoked=len(asked) > 1)

    links = LinkBook(RING, status, clock=lambda: now[0])
    token = links.mint("lnk_1", "ses_1", expires=2000)

    async def check_thrice() -> None:
        assert (await links.check(token)).sid == "ses_1"
        now[0] += STATUS_KEEP_S - 0.1
        assert (await links.check(token)).link == "lnk_1"
        now[0] += 0.2
        with pytest.raises(LinkRevoked, match="revoked"):
            await links.check(token)

    asyncio.run(check_thrice())
    assert asked == ["lnk_1", "lnk_1"]


def test_unknown_and_outdated_links_open_nothing() -> None:
    table = {"old": LinkStatus(expires=999.0)}
    links = LinkBook(RING, table.get, clock=lambda: 1000.0)

    async def check(link: str) -> None:
        with pytest.raises(LinkRevoked):
            await links.check(links.mint(link, "ses_1", expires=2000))

    asyncio.run(check("old"))
    asyncio.run(check("never made"))
