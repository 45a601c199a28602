"""Who may listen over HTTP: a link's token or an API key as bearer, or a ticket in the address."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError
from pipeline.web.site import Site
from streaming.errors import LedgerUnavailable, LinkRevoked, TokenError
from streaming.guests import Guest, NoPlace
from streaming.tickets import FIRST_USE_S
from streaming.tokens import Grant


class ListenRefused(PipelineError):
    """A listener is not let in.

    Attributes:
        code: an error code of the listening protocol.
        details: more fields of the error, as the protocol has them (`url` of a recording, ...).
    """

    def __init__(self, status: int, code: str, message: str, **details: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details


class TicketWish(BaseModel):
    """What `POST /v1/tickets` takes."""

    model_config = ConfigDict(extra="forbid")

    sid: Annotated[str, Field(max_length=64, description="session; default: the token's own")] = ""


def routes(site: Site) -> APIRouter:
    """Tickets."""
    handlers = _Tickets(site)
    router = APIRouter(tags=["listening"])
    router.post("/v1/tickets", status_code=201)(handlers.issue)
    return router


async def grant_for(site: Site, request: Request, sid: str, stream: str) -> Grant:
    """What a request may do with session `sid`.

    Args:
        stream: what a ticket is bound to when it is used.

    Raises:
        ListenRefused: nothing.
    """
    ticket = request.query_params.get("ticket", "")
    try:
        if ticket:
            grant = await site.gateway.tickets.redeem(ticket, sid, stream)
        else:
            grant = await _bearer_grant(site, request)
        await _check_link(site, grant, sid)
    except LedgerUnavailable as error:
        raise ListenRefused(503, "internal", "tickets cannot be checked now, try again") from error
    except TokenError as error:
        status = 403 if error.code == "forbidden" else 401
        raise ListenRefused(status, error.code, str(error)) from error
    return grant


async def take_place(site: Site, request: Request, sid: str, grant: Grant) -> Guest:
    """Count an endless listener among the connections of its address, link and user.

    Raises:
        ListenRefused: there is no place.
    """
    client = request.client
    address = site.gateway.admission.address(
        (client.host, client.port) if client else None, request.headers.getlist("x-forwarded-for")
    )
    try:
        return await site.gateway.admit(sid, grant, address)
    except NoPlace as full:
        raise ListenRefused(full.status, full.code, str(full)) from full


async def _check_link(site: Site, grant: Grant, sid: str) -> None:
    if not grant.covers(sid):
        raise LinkRevoked("the link is for another session")
    if grant.link and not await site.gateway.links.is_good(grant.link):
        raise LinkRevoked("the link was revoked; ask for a new one")


async def _bearer_grant(site: Site, request: Request) -> Grant:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return await site.gateway.links.check(bearer.strip())
    raise ListenRefused(
        401,
        "unauthenticated",
        "send a link's token or an API key as 'Authorization: Bearer ...', or ?ticket= "
        "(POST /v1/tickets gives one)",
    )


class _Tickets:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def issue(
        self, request: Request, wish: Annotated[TicketWish | None, Body()] = None
    ) -> dict[str, Any]:
        """Trade a link's token (bearer) for a ticket that an address may carry.

        It must be used within a minute, and is then good for that one stream of the session.
        """
        try:
            grant = await _bearer_grant(self._site, request)
            sid = (wish.sid if wish else "") or grant.sid or ""
            if sid in ("", "*"):
                raise ListenRefused(422, "bad_message", 'name the session: {"sid": ...}')
            await _check_link(self._site, grant, sid)
            ticket = await self._site.gateway.tickets.issue(grant, sid)
        except LedgerUnavailable as error:
            raise ListenRefused(503, "internal", "no tickets at the moment, try again") from error
        except TokenError as error:
            status = 403 if error.code == "forbidden" else 401
            raise ListenRefused(status, error.code, str(error)) from error
        return {"ticket": ticket, "sid": sid, "expires_in_s": FIRST_USE_S}
