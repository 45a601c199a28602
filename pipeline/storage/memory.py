"""The twin for tests."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.storage.contract import (
    ObjectBody,
    ObjectInfo,
    ObjectNotFound,
    Storage,
    StorageRefused,
    UploadLost,
    check_key,
    check_prefix,
    clamp,
    content_type_of,
)


@dataclass(frozen=True)
class _Kept:
    body: bytes
    content_type: str
    modified_ms: int


class MemoryStorage(Storage):
    """The twin for tests: same contract, gone with the process."""

    def __init__(self) -> None:
        self.where = "memory:"
        self._lock = threading.Lock()
        self._objects: dict[str, _Kept] = {}
        self._uploads: dict[str, tuple[str, dict[int, bytes]]] = {}

    def put_if_absent(self, key: str, body: bytes, *, content_type: str = "") -> bool:
        """See `Storage`."""
        kept = _Kept(bytes(body), content_type or content_type_of(key), time.time_ns() // 1_000_000)
        with self._lock:
            return self._objects.setdefault(check_key(key), kept) is kept

    def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody:
        """See `Storage`."""
        kept = self._objects.get(check_key(key))
        if kept is None:
            raise ObjectNotFound(f"{key}: no such object")
        size = len(kept.body)
        start, end = clamp(key, size, start, end)
        pieces = iter([kept.body[start:end]])
        return ObjectBody(size, start, end, kept.content_type, pieces, lambda: None)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage`."""
        kept = self._objects.get(check_key(key))
        return None if kept is None else self._info(key, kept)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        self._objects.pop(check_key(key), None)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        check_prefix(prefix)
        with self._lock:
            found = sorted(item for item in self._objects.items() if item[0].startswith(prefix))
        yield from (self._info(key, kept) for key, kept in found)

    def sign(self, key: str, ttl_s: int, *, filename: str | None = None) -> str | None:
        """None: memory has no door."""
        return None

    def open_upload(self, key: str, *, content_type: str = "") -> str:
        """See `Storage`."""
        check_key(key)
        upload_id = secrets.token_hex(8)
        self._uploads[upload_id] = (content_type, {})
        return upload_id

    def add_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """See `Storage`."""
        if upload_id not in self._uploads:
            raise UploadLost(f"{key}: upload {upload_id} is gone")
        self._uploads[upload_id][1][number] = bytes(body)
        return hashlib.sha256(body).hexdigest()

    def complete_if_absent(self, key: str, upload_id: str, tags: Sequence[str]) -> bool:
        """See `Storage`."""
        if key in self._objects:
            return False
        if upload_id not in self._uploads:
            raise UploadLost(f"{key}: upload {upload_id} is gone")
        content_type, parts = self._uploads[upload_id]
        body = [parts.get(n, b"") for n in range(1, len(tags) + 1)]
        if [hashlib.sha256(part).hexdigest() for part in body] != [*tags]:
            raise StorageRefused(f"{key}: the parts are not those that were announced")
        is_made = self.put_if_absent(key, b"".join(body), content_type=content_type)
        self.abort(key, upload_id)
        return is_made

    def abort(self, key: str, upload_id: str) -> None:
        """See `Storage`."""
        self._uploads.pop(upload_id, None)

    @staticmethod
    def _info(key: str, kept: _Kept) -> ObjectInfo:
        return ObjectInfo(
            key,
            len(kept.body),
            kept.content_type,
            kept.modified_ms,
            lambda: hashlib.sha256(kept.body).hexdigest(),
        )
