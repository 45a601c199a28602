"""Where sound is kept: an S3 bucket, a local folder, or memory for tests; one contract for all.

Objects are written once and never changed: `put_if_absent` and `complete_if_absent` make an object
or find that it exists, and say which. That is what keeps a recording single when two workers, or
two attempts, finish it (a fence in SQL cannot reach into a bucket).

Keys are relative paths of plain ASCII names (`rec/<tenant>/ab/<hash>-1.mp3`); no part begins with
a dot, so no key leaves its folder.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import Misconfigured, PipelineError

if TYPE_CHECKING:
    from pipeline.servers import S3Address

MIN_PART_BYTES = 5 << 20
"""Smallest part of an upload that is not its last; S3 refuses smaller ones."""

_READ_BYTES = 256 << 10
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


def make_storage(
    where: str | Path,
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    create: bool = False,
) -> Storage:
    """The store that a setting names.

    Args:
        where: `folder:PATH` or a path; `memory:`; or `s3://BUCKET[/PREFIX]` with the options
            `?endpoint=URL` (other than AWS), `region=NAME`, `public=URL` (where listeners reach
            the endpoint; `public=none`: they do not, so links are never signed) and
            `conditional=no` (a store that does not know If-None-Match).
        access_key, secret_key: for S3; without them boto3 looks in its usual places.
        create: make a missing bucket.

    Raises:
        Misconfigured: `where` makes no sense.
    """
    text = str(where)
    if text == "memory:":
        return MemoryStorage()
    if not text.startswith("s3://"):
        return FolderStorage(Path(text.removeprefix("folder:")))
    url = urllib.parse.urlsplit(text)
    options = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    unknown = options.keys() - {"endpoint", "region", "public", "conditional"}
    if unknown or not url.netloc:
        wrong = f"unknown option {min(unknown)!r}" if unknown else "no bucket"
        raise Misconfigured(
            f"{text}: {wrong}; expected s3://BUCKET/PREFIX?endpoint=URL&region=NAME"
        )
    storage = S3Storage(
        url.netloc,
        prefix=url.path.strip("/"),
        endpoint_url=options.get("endpoint"),
        region=options.get("region", "us-east-1"),
        public_url=options.get("public"),
        conditional=options.get("conditional") != "no",
        access_key=access_key,
        secret_key=secret_key,
    )
    if create:
        storage.create_bucket()
    return storage


# --- folder


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
            start, end = _clamp(key, size, start, end)
        except BaseException:
            file.close()
            raise

        def stream() -> Iterator[bytes]:
            with file, _folder_errors(path):
                file.seek(start)
                left = end - start
                while left > 0 and (piece := file.read(min(left, _READ_BYTES))):
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
        _check_prefix(prefix)
        for path in (self.root / prefix.rpartition("/")[0]).rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and self._beside not in path.parents and path.is_file():
                yield self._info(key, path)

    def sign(self, key: str, ttl_s: int, *, filename: str | None = None) -> str | None:
        """None: a folder has no door of its own."""
        return None

    def open_upload(self, key: str, *, content_type: str = "") -> str:
        """See `Storage`; parts wait in a folder of their own."""
        _check(key)
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
        return self.root / _check(key)

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


# --- S3


class S3Storage(Storage):
    """A bucket, or the part of it below `prefix`."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        public_url: str | None = None,
        conditional: bool = True,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            bucket: must exist, or call `create_bucket`.
            prefix: put before all keys, with a slash.
            endpoint_url: None for AWS.
            region: part of every signature.
            public_url: where listeners reach the endpoint; None: at `endpoint_url`; `none`:
                nowhere.
            conditional: False for a store without If-None-Match: look first, then put. Two writers
                at the same moment then overwrite each other; SQL still records one of them.
            access_key, secret_key: None: boto3's usual places.
        """
        self.bucket = bucket
        self.conditional = conditional
        self._prefix = f"{_check(prefix)}/" if prefix else ""
        self.where = f"s3://{bucket}/{self._prefix}".rstrip("/")
        keys = (region, access_key, secret_key)
        self._client = _s3_client(endpoint_url, *keys)
        self._signer: Any = None
        if public_url != "none":
            self._signer = _s3_client(public_url, *keys) if public_url else self._client

    @classmethod
    def at(cls, address: S3Address, prefix: str = "") -> S3Storage:
        """The store of an embedded server."""
        return cls(
            address.bucket,
            prefix=prefix,
            endpoint_url=address.endpoint_url,
            access_key=address.access_key,
            secret_key=address.secret_key,
        )

    def create_bucket(self) -> None:
        """Make the bucket if it is missing."""
        with self._errors("") as client:
            known = client.exceptions
            with suppress(known.BucketAlreadyOwnedByYou, known.BucketAlreadyExists):
                client.create_bucket(Bucket=self.bucket)

    def put_if_absent(self, key: str, body: bytes, *, content_type: str = "") -> bool:
        """See `Storage`; the store checks the SHA-256 that travels along, and keeps it."""
        digest = hashlib.sha256(body)
        return self._make_if_absent(
            key,
            "put_object",
            Body=body,
            ContentType=content_type or content_type_of(key),
            ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
            Metadata={"sha256": digest.hexdigest()},
        )

    def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody:
        """See `Storage`."""
        wanted: dict[str, str] = {}
        if start or end is not None:
            _check_range(start, end)
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._errors(key) as client:
            answer = client.get_object(Bucket=self.bucket, Key=self._name(key), **wanted)
        body = answer["Body"]
        size = int(answer.get("ContentRange", f"/{answer['ContentLength']}").rpartition("/")[2])

        def stream() -> Iterator[bytes]:
            with self._errors(key):
                yield from body.iter_chunks(_READ_BYTES)

        end = min(size, size if end is None else end)
        return ObjectBody(size, start, end, answer["ContentType"], stream(), body.close)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage`."""
        try:
            with self._errors(key) as client:
                found = client.head_object(Bucket=self.bucket, Key=self._name(key))
        except ObjectNotFound:
            return None
        digest = found["Metadata"].get("sha256")  # not on what came in parts
        return ObjectInfo(
            key,
            found["ContentLength"],
            found["ContentType"],
            int(found["LastModified"].timestamp() * 1000),
            (lambda: digest) if digest else partial(self._digest, key),
        )

    def delete(self, key: str) -> None:
        """See `Storage`."""
        with self._errors(key) as client:
            client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        _check_prefix(prefix)
        with self._errors(prefix) as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    modified_ms = int(found["LastModified"].timestamp() * 1000)
                    yield ObjectInfo(
                        key,
                        found["Size"],
                        content_type_of(key),
                        modified_ms,
                        partial(self._digest, key),
                    )

    def sign(self, key: str, ttl_s: int, *, filename: str | None = None) -> str | None:
        """See `Storage`; S3 allows at most seven days."""
        if self._signer is None:
            return None
        wanted = {"Bucket": self.bucket, "Key": self._name(key)}
        if filename is not None:
            quoted = urllib.parse.quote(filename, safe="")
            wanted["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quoted}"
        url = self._signer.generate_presigned_url("get_object", wanted, ExpiresIn=ttl_s)
        return str(url)

    def open_upload(self, key: str, *, content_type: str = "") -> str:
        """See `Storage`."""
        with self._errors(key) as client:
            answer = client.create_multipart_upload(
                Bucket=self.bucket,
                Key=self._name(key),
                ContentType=content_type or content_type_of(key),
            )
        return str(answer["UploadId"])

    def add_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """See `Storage`."""
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        with self._errors(key) as client:
            answer = client.upload_part(
                Bucket=self.bucket,
                Key=self._name(key),
                UploadId=upload_id,
                PartNumber=number,
                Body=body,
                ContentMD5=base64.b64encode(md5).decode(),
            )
        return str(answer["ETag"])

    def complete_if_absent(self, key: str, upload_id: str, tags: Sequence[str]) -> bool:
        """See `Storage`."""
        parts = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]
        try:
            return self._make_if_absent(
                key,
                "complete_multipart_upload",
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        except UploadLost:
            if self.head(key) is None:
                raise
            return False  # completed by a try whose answer was lost, or by somebody else

    def abort(self, key: str, upload_id: str) -> None:
        """See `Storage`."""
        with suppress(UploadLost), self._errors(key) as client:
            client.abort_multipart_upload(
                Bucket=self.bucket, Key=self._name(key), UploadId=upload_id
            )

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()
        if self._signer is not None:
            self._signer.close()

    def _name(self, key: str) -> str:
        return self._prefix + _check(key)

    def _digest(self, key: str) -> str:
        digest = hashlib.sha256()
        with self.open(key) as body:
            for piece in body:
                digest.update(piece)
        return digest.hexdigest()

    def _make_if_absent(self, key: str, operation: str, **arguments: Any) -> bool:
        """Call an operation that makes `key`; 409 means that a rival makes it right now."""
        from botocore.exceptions import ClientError

        arguments |= {"Bucket": self.bucket, "Key": self._name(key)}
        if self.conditional:
            arguments["IfNoneMatch"] = "*"
        elif self.head(key) is not None:
            return False
        for wait_s in (0.1, 0.4, 1.6, None):
            with self._errors(key) as client:
                try:
                    getattr(client, operation)(**arguments)
                    return True
                except ClientError as error:
                    status = _status(error)
                    if status == 412:
                        return False
                    if status != 409 or wait_s is None:
                        raise
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    @contextmanager
    def _errors(self, key: str) -> Iterator[Any]:
        """The client; its errors become ours."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        where = f"s3://{self.bucket}/{self._prefix}{key}"
        try:
            yield self._client
        except NoCredentialsError as error:
            raise StorageRefused(f"{where}: no access key; set one for the store") from error
        except BotoCoreError as error:
            raise StorageUnavailable(f"{where}: {error}") from error
        except ClientError as error:
            raise _translated(error, where) from error


def _translated(error: Any, where: str) -> StorageError:
    code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
    if code == "NoSuchUpload":
        return UploadLost(f"{where}: the upload is gone")
    if code == "NoSuchBucket":
        return StorageRefused(f"{where}: there is no such bucket; make it, or correct the name")
    if code in ("NoSuchKey", "404", "NotFound"):
        return ObjectNotFound(f"{where}: no such object")
    if status == 416:
        return RangeNotSatisfiable(f"{where}: the range begins behind the end")
    if status in (401, 403):
        return StorageRefused(f"{where}: access denied ({code}); check access key and rights")
    if status == 501:
        return StorageRefused(
            f"{where}: the store lacks {code}; add ?conditional=no to its address"
        )
    if status >= 500 or status in (408, 409, 429) or code in ("SlowDown", "RequestTimeout"):
        return StorageUnavailable(f"{where}: {code} ({status})")
    return StorageRefused(f"{where}: {error}")


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _s3_client(
    endpoint_url: str | None, region: str, access_key: str | None, secret_key: str | None
) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        connect_timeout=2,
        read_timeout=10,
        retries={"mode": "standard", "total_max_attempts": 3},
        # Buckets as host names need DNS entries, which only AWS is sure to have.
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        # Not every store knows the newer default checksums; what matters carries its own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


# --- memory


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
            return self._objects.setdefault(_check(key), kept) is kept

    def open(self, key: str, start: int = 0, end: int | None = None) -> ObjectBody:
        """See `Storage`."""
        kept = self._objects.get(_check(key))
        if kept is None:
            raise ObjectNotFound(f"{key}: no such object")
        size = len(kept.body)
        start, end = _clamp(key, size, start, end)
        pieces = iter([kept.body[start:end]])
        return ObjectBody(size, start, end, kept.content_type, pieces, lambda: None)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Storage`."""
        kept = self._objects.get(_check(key))
        return None if kept is None else self._info(key, kept)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        self._objects.pop(_check(key), None)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        _check_prefix(prefix)
        with self._lock:
            found = sorted(item for item in self._objects.items() if item[0].startswith(prefix))
        yield from (self._info(key, kept) for key, kept in found)

    def sign(self, key: str, ttl_s: int, *, filename: str | None = None) -> str | None:
        """None: memory has no door."""
        return None

    def open_upload(self, key: str, *, content_type: str = "") -> str:
        """See `Storage`."""
        _check(key)
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


# --- what a store can do


@dataclass(frozen=True)
class Report:
    """What `probe` found; all True on a good store.

    Attributes:
        put_is_conditional: a second put of a key is refused and changes nothing.
        complete_is_conditional: so is a second upload.
        reads_ranges: a part of an object can be fetched.
        signs_links: a signed link answers anybody; None if the store signs none.
    """

    put_is_conditional: bool
    complete_is_conditional: bool
    reads_ranges: bool
    signs_links: bool | None

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences for people; empty if all is well."""
        found = []
        if not (self.put_is_conditional and self.complete_is_conditional):
            found.append(
                "the store overwrites existing objects in spite of If-None-Match: add "
                "?conditional=no to its address, and know that two workers may then overwrite "
                "each other's recording of the same note"
            )
        if not self.reads_ranges:
            found.append("the store ignores ranges: players cannot seek")
        if self.signs_links is False:
            found.append(
                "signed links do not answer: check ?public= in the store's address, or set "
                "?public=none to have recordings served by notecast"
            )
        return tuple(found)


def probe(storage: Storage) -> Report:
    """Try on the store what we rely on; writes, and removes, two small objects below `probe/`."""
    name = f"probe/{secrets.token_hex(8)}"
    put, uploaded = f"{name}-put", f"{name}-upload"
    try:
        storage.put_if_absent(put, b"first")
        is_refused = not storage.put_if_absent(put, b"second")
        put_is_conditional = is_refused and storage.get(put) == b"first"
        results = []
        for body in (b"first", b"second"):
            upload_id = storage.open_upload(uploaded)
            tag = storage.add_part(uploaded, upload_id, 1, body)
            results.append(storage.complete_if_absent(uploaded, upload_id, [tag]))
            storage.abort(uploaded, upload_id)
        link = storage.sign(put, 60)
        return Report(
            put_is_conditional=put_is_conditional,
            complete_is_conditional=results == [True, False] and storage.get(uploaded) == b"first",
            reads_ranges=storage.get(put, 1, 3) == storage.get(put)[1:3],
            signs_links=None if link is None else _answers(link, storage.get(put)),
        )
    finally:
        storage.delete(put)
        storage.delete(uploaded)


def _answers(link: str, body: bytes) -> bool:
    import requests

    try:
        return requests.get(link, timeout=10).content == body
    except requests.RequestException:
        return False


# --- keys and ranges


def content_type_of(key: str) -> str:
    """The media type that a key's ending stands for."""
    known = (kind for ending, kind in _CONTENT_TYPES.items() if key.endswith(ending))
    return next(known, "application/octet-stream")


def _check(key: str) -> str:
    if not _KEY.fullmatch(key) or len(key) > 800:
        raise ValueError(f"{key!r} cannot be a key")
    return key


def _check_prefix(prefix: str) -> None:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix!r} cannot begin a key")


def _check_range(start: int, end: int | None) -> None:
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"no bytes from {start} to {end}")


def _clamp(key: str, size: int, start: int, end: int | None) -> tuple[int, int]:
    if start == 0 and end is None:
        return 0, size
    _check_range(start, end)
    if start >= size:
        raise RangeNotSatisfiable(f"{key}: byte {start} is behind the end, {size}")
    return start, min(size, size if end is None else end)
