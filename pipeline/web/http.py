"""uvicorn's HTTP, with two habits of our own.

Endless answers are ended when the server stops, instead of being waited for. And uvicorn sends
bodies without a length in chunks to everybody; an old player takes the chunks' marks for sound: for
HTTP/1.0 the end of such a body is the end of the connection (RFC 9112, sections 6.1 and 6.3).
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from streaming.gateway import Gateway


def http_protocol(gateway: Gateway) -> type[HttpToolsProtocol]:
    """The `http=` of uvicorn's configuration."""

    class Http(HttpToolsProtocol):
        def shutdown(self) -> None:
            if not gateway.draining:
                gateway.send_away()
            super().shutdown()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            if cycle.scope["http_version"] == "1.0":
                cycle.chunked_encoding = False
                cycle.expected_content_length = _Unknown()
            super()._start_asgi_task(cycle, app)

    return Http


class _Unknown(int):
    """How much is still to come, where nobody has said."""

    def __sub__(self, _sent: int) -> _Unknown:
        return self

    def __lt__(self, _sent: int) -> bool:
        return False

    def __ne__(self, _nothing: object) -> bool:
        return False

    __hash__ = int.__hash__
