"""The other end of a Feishu Base's webhook trigger."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BASE = """
[endpoint.base]
connector = "feishu_automation"
write_back_url = "{url}"
secrets = {{ token = ["env:NC_FEISHU_TOKEN"], write_back = "env:NC_FEISHU_WRITE_BACK" }}
"""
WRITE_BACK_TOKEN = "the-webhook-trigger-of-the-base"


class Base:
    """The webhook trigger of a Feishu Base: busy at first, then willing; keeps what it gets."""

    def __init__(self, busy: int = 1) -> None:
        self.calls: list[tuple[dict[str, str], dict[str, Any]]] = []
        base = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                base.calls.append((dict(self.headers), body))
                is_busy = len(base.calls) <= busy
                self.send_response(503 if is_busy else 200)
                if is_busy:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(b'{"code": 0}')

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/trigger"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
