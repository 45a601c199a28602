"""A local folder as a store."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage.contract import (
    READ_BYTES,
    ObjectBody,
    ObjectInfo,
    ObjectNotFound,
    Storage,
    StorageRefused,
    StorageUnavailable,
    UploadLost,
    check_key,
    check_prefix,
    clamp,
    content_type_of,
)


class FolderStorage(Storage):
    """A local folder: written beside, synced, linked into place (a link refuses a taken name)."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.where = str(self.root)
        self._beside = self.root / ".unfinished"
        with _folder_errors(self.root):
            self._beside.mkdir(parents=True, exist_ok=True)

    def put_if_absent(self, key: str, body: bytes, *, content_type: str = "") -> bool:
        """See `Storage`; on the disk when it returns."""
        path = self._path(key)
        with _folder_errors(path):
            return not path.exists() and self._write([body], path)

    def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody:
        """See `Storage`."""
        path = self._path(key)
        with _folder_errors(path):
            try:
                file = path.open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise ObjectNotFound(f"{key}: no such object") from error
        try:
            size = os.fstat(file.fileno()).st_size
            start, end = clamp(key, size, start, end)
        except BaseException:
            file.close()
            raise

        def stream() -> Iterator[bytes]:
            with file, _folder_errors(path):
                file.seek(start)
                left = end - start
                while left > 0 and (piece := file.read(min(left, READ_BYTES))):
                    left -= len(piece)
                    yield piece

        return ObjectBody(size, start, end, content_type_of(key), stream(), file.close)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage`."""
        path = self._path(key)
        return self._info(key, path) if path.is_file() else None

    def delete(self, key: str) -> None:
        """See `Storage`; folders that fall empty stay."""
        path = self._path(key)
        with _folder_errors(path):
            path.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        check_prefix(prefix)
        for path in (self.root / prefix.rpartition("/")[0]).rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and self._beside not in path.parents and path.is_file():
                yield self._info(key, path)

    def sign(self, key: str, ttl_s: int, *, filename: str | None = None) -> str | None:
        """None: a folder has no door of its own."""
        return None

    def open_upload(self, key: str, *, content_type: str = "") -> str:
        """See `Storage`; parts wait in a folder of their own."""
        check_key(key)
        with _folder_errors(self._beside):
            return Path(tempfile.mkdtemp(prefix="upload-", dir=self._beside)).name

    def add_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """See `Storage`."""
        path = self._upload(upload_id) / f"{number:05}"
        if not path.parent.is_dir():
            raise UploadLost(f"{key}: upload {upload_id} is gone")
        with _folder_errors(path):
            half = self._half([body])
            half.replace(path)
            _sync(path.parent)
        return hashlib.sha256(body).hexdigest()

    def complete_if_absent(self, key: str, upload_id: str, tags: Sequence[str]) -> bool:
        """See `Storage`."""
        path, upload = self._path(key), self._upload(upload_id)
        if path.exists():
            return False
        with _folder_errors(path):
            try:
                parts = [(upload / f"{n + 1:05}").read_bytes() for n in range(len(tags))]
            except FileNotFoundError as error:
                raise UploadLost(f"{key}: upload {upload_id} is gone") from error
            if [hashlib.sha256(part).hexdigest() for part in parts] != [*tags]:
                raise StorageRefused(f"{key}: the parts are not those that were announced")
            is_made = self._write(parts, path)
        self.abort(key, upload_id)
        return is_made

    def abort(self, key: str, upload_id: str) -> None:
        """See `Storage`."""
        shutil.rmtree(self._upload(upload_id), ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _upload(self, upload_id: str) -> Path:
        if not re.fullmatch(r"upload-\w+", upload_id):
            raise ValueError(f"{upload_id!r} is not an upload of a folder")
        return self._beside / upload_id

    def _info(self, key: str, path: Path) -> ObjectInfo:
        found = path.stat()

        def digest() -> str:
            with _folder_errors(path), path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        modified_ms = found.st_mtime_ns // 1_000_000
        return ObjectInfo(key, found.st_size, content_type_of(key), modified_ms, digest)

    def _write(self, pieces: Sequence[bytes], path: Path) -> bool:
        self._make_folder(path.parent)
        half = self._half(pieces)
        try:
            os.link(half, path)
        except FileExistsError:
            return False
        finally:
            half.unlink()
        _sync(path.parent)
        return True

    def _half(self, pieces: Sequence[bytes]) -> Path:
        handle, name = tempfile.mkstemp(dir=self._beside)
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(handle)
        except OSError:
            os.unlink(name)
            raise
        return Path(name)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE):
            raise StorageUnavailable(f"{path}: {error.strerror}") from error
        raise StorageRefused(f"{path}: {error.strerror}") from error
