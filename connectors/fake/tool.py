"""What every fake tool is made of: routes, refusals, a hook for its events.

A tool is one file with a subclass of `FakeTool`: its tables live in the `World`, its handlers are
plain functions that run side by side in threads, and `events` says what the tool tells its hook.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from connectors.fake.courier import Delivery
from connectors.fake.endpoints import Endpoint
from connectors.fake.world import Change, World

Handler = Callable[[Request, dict[str, Any]], Any]
"""Gets the request and its content, gives a JSON value or a `Response`; may raise `Refused`."""


class Refused(Exception):
    """An answer that is a tool's no."""

    def __init__(
        self, content: Any, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(str(content))
        self.answer = JSONResponse(content, status, headers)


class FakeTool(ABC):
    """A tool that the server speaks for; the subclass has its routes, secrets and tables.

    Attributes:
        name: `feishu`, `airtable`, ...; the first part of its tables' keys.
        title: as people call it.
        hook_url: where its events go; empty sends none.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hook_url = ""

    @abstractmethod
    def routes(self) -> APIRouter:
        """The tool's HTTP interface, built with `add_route`."""

    def add_samples(self) -> None:  # noqa: B027  # some have nothing to show
        """Fill in tables for a demo."""

    def endpoint(self, url: str) -> Endpoint | None:
        """Its samples as an endpoint of a Notecast that reaches the fake at `url`."""
        return None

    def events(self, change: Change) -> list[Delivery]:
        """What the tool tells its hook about a change of one of its tables."""
        return []

    def bad_request(self) -> Refused:
        """The answer to a body that is no object."""
        return Refused({"error": "bad request"})


def add_route(tool: FakeTool, router: APIRouter, method: str, path: str, handler: Handler) -> None:
    """Serve `method path` with a handler, in a thread of its own."""

    async def serve(request: Request) -> Any:
        content = read_content(request.headers.get("content-type", ""), await request.body())
        return await run_in_threadpool(answer, request, content)

    def answer(request: Request, content: Any) -> Any:
        try:
            if not isinstance(content, dict):
                raise tool.bad_request()
            return handler(request, content)
        except Refused as refused:
            return refused.answer

    router.add_api_route(
        path, serve, methods=[method], name=handler.__name__, response_model=None,
        response_class=Response if method == "HEAD" else JSONResponse,
    )  # fmt: skip


def read_content(content_type: str, body: bytes) -> Any:
    """JSON, the fields of a form, or its parts (a file is name and bytes); None is none of them."""
    if content_type.startswith("application/x-www-form-urlencoded"):
        return dict(parse_qsl(body.decode(), keep_blank_values=True))
    if content_type.startswith("multipart/form-data"):
        return _parts(content_type.partition("boundary=")[2].strip('"').encode(), body)
    try:
        return json.loads(body) if body else {}
    except ValueError:
        return None


def _parts(boundary: bytes, body: bytes) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        names = dict(re.findall(r'(name|filename)="([^"]*)"', head.decode()))
        content = content.removesuffix(b"\r\n")
        is_file = "filename" in names or names["name"] == "file"
        parts[names["name"]] = (names.get("filename", ""), content) if is_file else content.decode()
    return parts
