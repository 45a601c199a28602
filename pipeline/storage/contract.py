"""What a store promises, and what can go wrong with one.

Keys are relative paths of plain ASCII names (`rec/<tenant>/ab/<hash>-1.mp3`); no part begins with
a dot, so no key leaves its folder.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipeline.errors import PipelineError

MIN_PART_BYTES = 5 << 20
"""Smallest part of an upload that is not its last; S3 refuses smaller ones."""

READ_BYTES = 256 << 10
_NAME = r"[A-Za-z0-9][A-Za-z0-9._=-]{0,199}"
_KEY = re.compile(rf"{_NAME}(/{_NAME})*")
_PREFIX = re.compile(rf"({_NAME}/)*({_NAME})?")
_CONTENT_TYPES = {
    ".chapters.json": "application/json+chapters",
    ".flac": "audio/flac",
    ".json": "application/json",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".vtt": "text/vtt",
    ".wav": "audio/wav",
}


class StorageError(PipelineError):
    """Root of what a store can answer."""

    code = "storage"


class StorageUnavailable(StorageError):
    """The store is away, too slow or full; the same call may succeed later."""

    status = 503
    retry = True


class StorageRefused(StorageError):
    """The store said no and will say no again: keys, rights, bucket; the message names the cure."""


class ObjectNotFound(StorageError):
    """There is no object of this key."""

    status = 404
    code = "not_found"


class RangeNotSatisfiable(StorageError):
    """The range begins behind the end of the object."""

    status = 416
    code = "range_not_satisfiable"


class UploadLost(StorageError):
    """The store forgot an unfinished upload (old ones are swept): begin a new one."""

    retry = True


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows about an object.

    Attributes:
        key: as it was put.
        size_bytes: of the body.
        content_type: as it was put; from the key's ending in listings and in a folder.
        modified_ms: Unix ms by the store's clock.
    """

    key: str
    size_bytes: int
    content_type: str
    modified_ms: int
    _digest: Callable[[], str] = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the body, hex; reads the object where the store does not keep it."""
        return self._digest()


@dataclass(frozen=True)
class ObjectBody:
    """A part of an object on its way out; read it to the end, or close it.

    Attributes:
        size_bytes: of the whole object.
        start, end: which bytes of it follow, `end` exclusive.
        content_type: of the object.
    """

    size_bytes: int
    start: int
    end: int
    content_type: str
    _stream: Iterator[bytes]
    _close: Callable[[], None]

    def __iter__(self) -> Iterator[bytes]:
        return self._stream

    def close(self) -> None:
        """Let go of the file or connection; harmless when done."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Storage(ABC):
    """A place for objects. Methods may be called from any thread.

    All raise `StorageUnavailable` or `StorageRefused`, and ValueError for an impossible key.

    Attributes:
        where: the place in an operator's words.
    """

    where: str

    @abstractmethod
    def put_if_absent(self, key: str, body: bytes, *, content_type: str = "") -> bool:
        """Make an object, durably, or leave the one that is there.

        Returns:
            False if the key exists already, which may also be the work of an earlier try of this
            very call whose answer was lost; compare digests where it matters.
        """

    @abstractmethod
    def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody:
        """Begin to read bytes `start` to `end` (exclusive; clamped to the size).

        Raises:
            ObjectNotFound: no such key.
            RangeNotSatisfiable: `start` is behind the last byte.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """What is known about an object, or None."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix`, in whatever order the store has them."""

    @abstractmethod
    def sign(self, key: str, ttl_s: int, *, filename: str | None = None) -> str | None:
        """A link anybody can fetch for `ttl_s` seconds, or None: serve the object yourself.

        Args:
            filename: name under which a browser saves it.
        """

    def address(self, key: str) -> str:
        """Where the object lies, in an operator's words."""
        return f"{self.where}/{key}"

    @abstractmethod
    def open_upload(self, key: str, *, content_type: str = "") -> str:
        """Begin an object that comes in parts; returns the upload's id. Nothing is visible yet."""

    @abstractmethod
    def add_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """Send part `number` (from 1; again replaces it); returns the tag `complete` wants.

        All parts but the last have at least `MIN_PART_BYTES`.
        """

    @abstractmethod
    def complete_if_absent(self, key: str, upload_id: str, tags: Sequence[str]) -> bool:
        """Make the object of its parts in order, unless the key exists (then False).

        Raises:
            UploadLost: the upload is unknown and the key does not exist.
        """

    @abstractmethod
    def abort(self, key: str, upload_id: str) -> None:
        """Drop an unfinished upload; harmless when it is gone."""

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive) of an object; errors as in `open`."""
        with self.open(key, start, end) as body:
            return b"".join(body)

    def close(self) -> None:  # noqa: B027  # a folder holds nothing open
        """Let go of connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def content_type_of(key: str) -> str:
    """The media type that a key's ending stands for."""
    known = (kind for ending, kind in _CONTENT_TYPES.items() if key.endswith(ending))
    return next(known, "application/octet-stream")


def check_key(key: str) -> str:
    """The key, if it can be one."""
    if not _KEY.fullmatch(key) or len(key) > 800:
        raise ValueError(f"{key!r} cannot be a key")
    return key


def check_prefix(prefix: str) -> None:
    """Refuse what no key can begin with."""
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix!r} cannot begin a key")


def check_range(start: int, end: int | None) -> None:
    """Refuse a range that holds nothing."""
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"no bytes from {start} to {end}")


def clamp(key: str, size: int, start: int, end: int | None) -> tuple[int, int]:
    """The part of a range that an object of `size` bytes has."""
    if start == 0 and end is None:
        return 0, size
    check_range(start, end)
    if start >= size:
        raise RangeNotSatisfiable(f"{key}: byte {start} is behind the end, {size}")
    return start, min(size, size if end is None else end)
