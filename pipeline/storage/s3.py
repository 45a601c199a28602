"""An S3 bucket as a store, through boto3."""

from __future__ import annotations

import base64
import hashlib
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.storage.contract import (
    READ_BYTES,
    ObjectBody,
    ObjectInfo,
    ObjectNotFound,
    RangeNotSatisfiable,
    Storage,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    UploadLost,
    check_key,
    check_prefix,
    check_range,
    content_type_of,
)

if TYPE_CHECKING:
    from pipeline.servers import S3Address


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
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
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
            check_range(start, end)
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._errors(key) as client:
            answer = client.get_object(Bucket=self.bucket, Key=self._name(key), **wanted)
        body = answer["Body"]
        size = int(answer.get("ContentRange", f"/{answer['ContentLength']}").rpartition("/")[2])

        def stream() -> Iterator[bytes]:
            with self._errors(key):
                yield from body.iter_chunks(READ_BYTES)

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
        check_prefix(prefix)
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
        return self._prefix + check_key(key)

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
