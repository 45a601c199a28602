"""Where sound is kept: an S3 bucket, a local folder, or memory for tests; one contract for all.

Objects are written once and never changed: `put_if_absent` and `complete_if_absent` make an object
or find that it exists, and say which. That is what keeps a recording single when two workers, or
two attempts, finish it (a fence in SQL cannot reach into a bucket).
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path

from pipeline.errors import Misconfigured
from pipeline.storage.contract import (
    MIN_PART_BYTES,
    ObjectBody,
    ObjectInfo,
    ObjectNotFound,
    RangeNotSatisfiable,
    Storage,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    UploadLost,
    content_type_of,
)
from pipeline.storage.folder import FolderStorage
from pipeline.storage.memory import MemoryStorage
from pipeline.storage.probe import Report, probe
from pipeline.storage.s3 import S3Storage

__all__ = [
    "MIN_PART_BYTES",
    "FolderStorage",
    "MemoryStorage",
    "ObjectBody",
    "ObjectInfo",
    "ObjectNotFound",
    "RangeNotSatisfiable",
    "Report",
    "S3Storage",
    "Storage",
    "StorageError",
    "StorageRefused",
    "StorageUnavailable",
    "UploadLost",
    "content_type_of",
    "make_storage",
    "probe",
]


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
