"""Feishu's drive, as far as attachments of a Base need it: whole files, and large ones in parts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request

from connectors.fake.feishu_cells import No, ok
from connectors.fake.tool import Handler
from connectors.fake.world import File

MAX_UPLOAD_BYTES = 20 << 20
BLOCK_BYTES = 4 << 20


class Drive:
    """Uploaded files by token; each may be used in the base it was uploaded for."""

    def __init__(self, require_token: Callable[[Request], None]) -> None:
        self.files: dict[str, File] = {}
        self._require_token = require_token
        self._uploads: dict[str, tuple[str, str, int, dict[int, bytes]]] = {}

    def steps(self) -> Mapping[str, Handler]:
        """The last part of an address -> who answers there."""
        return {
            "upload_all": self._all,
            "upload_prepare": self._prepare,
            "upload_part": self._part,
            "upload_finish": self._finish,
        }

    def _all(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._require_token(request)
        name, raw = content.get("file", ("", b""))
        if content.get("parent_type") != "bitable_file" or content.get("size") != str(len(raw)):
            raise No(1061002, "params error.", 400)
        if len(raw) > MAX_UPLOAD_BYTES:
            raise No(1061043, "file size beyond limit.", 400)
        base = str(content.get("parent_node"))
        return ok({"file_token": self._keep(str(content.get("file_name") or name), raw, base)})

    def _prepare(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._require_token(request)
        upload_id, size = secrets.token_hex(8), int(content["size"])
        self._uploads[upload_id] = (content["file_name"], content["parent_node"], size, {})
        blocks = -(-size // BLOCK_BYTES)
        return ok({"upload_id": upload_id, "block_size": BLOCK_BYTES, "block_num": blocks})

    def _part(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._require_token(request)
        upload = self._uploads.get(str(content.get("upload_id")))
        _, raw = content.get("file", ("", b""))
        if upload is None or content.get("size") != str(len(raw)) or len(raw) > BLOCK_BYTES:
            raise No(1061002, "params error.", 400)
        upload[3][int(content["seq"])] = raw
        return ok({})

    def _finish(self, request: Request, content: dict[str, Any]) -> dict[str, Any]:
        self._require_token(request)
        name, base, size, blocks = self._uploads.pop(str(content.get("upload_id")))
        raw = b"".join(blocks[seq] for seq in sorted(blocks))
        if len(raw) != size or content.get("block_num") != len(blocks):
            raise No(1061002, "params error.", 400)
        return ok({"file_token": self._keep(name, raw, base)})

    def _keep(self, name: str, content: bytes, base: str) -> str:
        token = f"box{secrets.token_hex(10)}"
        self.files[token] = File(token, name, content, base)
        return token
