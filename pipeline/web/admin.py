"""`/admin`: a page for whoever runs this, and the same as JSON. Needs an API key of scope `admin`.

A browser logs in with the key once and then holds a signed cookie for twelve hours; it is sent to
`/admin` only, never to scripts or other sites, and dies with its key. Programs send the key as
`Authorization: Bearer`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import admin, reports
from pipeline.audit import write_audit
from pipeline.errors import Refused
from pipeline.listening import listening
from pipeline.operate import revive, stop_episode
from pipeline.web.files import PAGE_HEADERS
from pipeline.web.problems import problem
from pipeline.web.site import Site
from streaming.errors import TokenError
from streaming.tokens import Grant

PAGES = Path(str(resources.files("pipeline"))) / "web" / "pages"
COOKIE = "notecast_admin"
SCOPE = "admin"
LOGIN_S = 12 * 3600
HEADERS = PAGE_HEADERS | {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
}
_LOGIN_BYTES = 4096

Op = Literal["stop", "kick", "revoke", "retry"]


def routes(site: Site) -> APIRouter:
    """The page, its parts, and what can be done from it."""
    handlers = _Admin(site)
    router = APIRouter(prefix="/admin", include_in_schema=False)
    router.get("")(handlers.page)
    router.get("/login")(handlers.login_page)
    router.post("/login")(handlers.login)
    router.post("/logout")(handlers.logout)
    router.get("/part")(handlers.part)
    router.get("/reports/{name}")(handlers.report)
    allowed = [Depends(handlers.check)]
    router.get("/live", tags=["operations"], include_in_schema=True, dependencies=allowed)(
        handlers.live
    )
    router.post("/live/{key}/{op}", tags=["operations"], include_in_schema=True)(handlers.act)
    return router


def mount_static(app: FastAPI) -> None:
    """The page's script and style."""
    app.mount("/admin/static", StaticFiles(directory=PAGES / "static"), name="admin-static")


class _Admin:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._services = site.services
        self._pages = Environment(
            loader=FileSystemLoader(PAGES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )

    # who

    def check(self, request: Request) -> str:
        """Who asks, for the audit; refuses everybody but administrators."""
        actor = self._visitor(request)
        if actor is None:
            raise HTTPException(
                401,
                "log in at /admin, or send an API key of scope admin as 'Authorization: Bearer "
                "KEY'; 'notecast keys add NAME --scope admin' makes one",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return actor

    def _visitor(self, request: Request) -> str | None:
        return self._by_key(request) or self._by_cookie(request)

    def _by_key(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        found = self._site.key_of(key) if scheme.lower() == "bearer" else None
        return f"key:{found.name}" if found is not None and SCOPE in found.scopes else None

    def _by_cookie(self, request: Request) -> str | None:
        try:
            grant = self._services.links.ring.verify(
                request.cookies.get(COOKIE, ""), now=time.time()
            )
        except TokenError:
            return None
        found = self._site.key_of_id(grant.link) if SCOPE in grant.scopes else None
        return f"key:{found.name}" if found is not None and SCOPE in found.scopes else None

    # pages

    async def page(self, request: Request) -> Response:
        """The page, or the way to log in."""
        if await self._site.in_transaction(lambda: self._visitor(request)) is None:
            return RedirectResponse("/admin/login", 303, headers=HEADERS)
        return await self._render("admin.html")

    async def part(self, request: Request) -> Response:
        """What changes on the page."""
        if await self._site.in_transaction(lambda: self._visitor(request)) is None:
            return problem(401, "unauthenticated", "log in again")
        return await self._render("live.html")

    async def login_page(self) -> Response:
        """A field for the key."""
        return self._html("login.html", problem="")

    async def login(self, request: Request) -> Response:
        """Trade a key for a cookie."""
        if not _is_same_site(request):
            return problem(403, "forbidden", "log in from the page of this server")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LOGIN_BYTES:
                return problem(413, "too_large", "that is no API key")
        key = parse_qs(body.decode("ascii", "replace")).get("key", [""])[0].strip()
        found = await self._site.in_transaction(lambda: self._site.key_of(key))
        if found is None or SCOPE not in found.scopes:
            why = "This key is unknown or revoked." if found is None else (
                f"The key “{found.name}” is not an administrator's."
            )  # fmt: skip
            return self._html("login.html", 401, problem=why)
        until = int(time.time()) + LOGIN_S
        grant = Grant(link=found.id, role="admin", expires=until, sid="*", scopes=(SCOPE,))
        answer = RedirectResponse("/admin", 303, headers=HEADERS)
        answer.set_cookie(
            COOKIE,
            self._services.links.ring.sign(grant),
            max_age=LOGIN_S,
            path="/admin",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def logout(self) -> Response:
        """Forget the cookie."""
        answer = RedirectResponse("/admin/login", 303, headers=HEADERS)
        answer.delete_cookie(COOKIE, path="/admin")
        return answer

    async def report(self, name: str, request: Request) -> Response:
        """A report as a table, or with `.csv` as CSV."""
        actor = await self._site.in_transaction(lambda: self._visitor(request))
        if actor is None:
            return RedirectResponse("/admin/login", 303, headers=HEADERS)
        view, _, form = name.partition(".")
        if form not in ("", "csv"):
            raise Refused(f"a report is a page or CSV, not {form}", field="name")
        limit = 10_000 if form else 500
        result = await self._site.in_transaction(
            lambda: reports.report(self._services.database, view, actor=actor, limit=limit)
        )
        if form:
            named = {"Content-Disposition": f'attachment; filename="{view}.csv"'}
            text = reports.to_csv(result)
            return PlainTextResponse(text, media_type="text/csv", headers=HEADERS | named)
        return self._html("report.html", name=view, result=result)

    # programs

    async def live(self) -> dict[str, Any]:
        """What is spoken, who listens, what waits, what failed."""
        return await self._look()

    async def act(self, key: str, op: Op, request: Request) -> Response:
        """Stop, kick, revoke or retry an episode; pages come back to `/admin`."""
        from_page = "authorization" not in request.headers
        if from_page and not _is_same_site(request):
            return problem(403, "forbidden", "use the page of this server")
        actor = await self._site.in_transaction(lambda: self.check(request))
        done = await self._site.in_transaction(lambda: self._act(key, op, actor))
        if op == "kick":
            await self._site.gateway.kick(key)
        if from_page:
            return RedirectResponse("/admin", 303, headers=HEADERS)
        return Response(status_code=204 if done else 409, headers=HEADERS)

    def _act(self, key: str, op: Op, actor: str) -> bool:
        services = self._services
        if op == "stop":
            return stop_episode(services, key, actor=actor)
        if op == "retry":
            revive(services, key, actor=actor)
            return True
        with services.database.write() as connection:
            found = admin.link_ids(connection, key)
            write_audit(connection, actor=actor, action=op, about=key)
        if op == "revoke":
            for link in found:
                services.revoke_link(link)
        return True

    # helpers

    async def _look(self) -> dict[str, Any]:
        known = await self._site.in_transaction(lambda: admin.overview(self._services))
        return known | {"listening": await listening(self._services, self._site.gateway)}

    async def _render(self, template: str) -> Response:
        return self._html(template, **await self._look())

    def _html(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._pages.get_template(template).render(
            {"name": "", "reports": list(reports.REPORTS), **values}
        )
        return Response(text, status, media_type="text/html", headers=HEADERS)


def _is_same_site(request: Request) -> bool:
    """Say if a form was sent by a page of ours; the cookie's `SameSite` says so a second time."""
    headers: Mapping[str, str] = request.headers
    origin = headers.get("origin", "")
    return bool(origin) and urlsplit(origin).netloc == headers.get("host")
