"""uvicorn's HTTP, and bodies without a length for clients of HTTP/1.0.

uvicorn sends those in chunks to everybody. An old player takes the chunks' marks for sound: for
HTTP/1.0 the end of such a body is the end of the connection (RFC 9112, sections 6.1 and 6.3).
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Http(HttpToolsProtocol):
    """The `http=` of uvicorn's configuration."""

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.chunked_encoding = False
            cycle.expected_content_length = _Unknown()
        super()._start_asgi_task(cycle, app)


class _Unknown(int):
    """How much is still to come, where nobody has said."""

    def __sub__(self, _sent: int) -> _Unknown:
        return self

    def __lt__(self, _sent: int) -> bool:
        return False

    def __ne__(self, _nothing: object) -> bool:
        return False

    __hash__ = int.__hash__
