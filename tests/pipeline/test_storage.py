"""One contract over folder, memory and a real S3 server; then what is particular to each."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline import servers
from pipeline.errors import Misconfigured
from pipeline.storage import (
    MIN_PART_BYTES,
    FolderStorage,
    MemoryStorage,
    ObjectNotFound,
    RangeNotSatisfiable,
    Report,
    S3Storage,
    Storage,
    StorageRefused,
    StorageUnavailable,
    UploadLost,
    make_storage,
    probe,
)


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        yield FolderStorage(tmp_path / "objects")
    elif request.param == "memory":
        yield MemoryStorage()
    else:
        yield request.getfixturevalue("s3_storage")


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- the contract


def test_object_comes_back_as_it_was_put(store: Storage) -> None:
    body = secrets.token_bytes(700_000)

    assert store.put_if_absent("rec/t1/ab/x-1.mp3", body, content_type="audio/mpeg")

    info = store.head("rec/t1/ab/x-1.mp3")
    assert info is not None
    assert store.get("rec/t1/ab/x-1.mp3") == body
    assert (info.size_bytes, info.digest) == (len(body), sha256(body))
    assert info.content_type == "audio/mpeg"
    assert info.modified_ms > 1_600_000_000_000


def test_second_put_is_refused_and_changes_nothing(store: Storage) -> None:
    store.put_if_absent("a.flac", b"first")

    assert store.put_if_absent("a.flac", b"second") is False

    assert store.get("a.flac") == b"first"


def test_one_of_many_simultaneous_puts_wins(store: Storage) -> None:
    bodies = [secrets.token_bytes(20_000) for _ in range(6)]
    won: list[bytes] = []

    def put(body: bytes) -> None:
        if store.put_if_absent("race", body):
            won.append(body)

    threads = [threading.Thread(target=put, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert won == [store.get("race")]


def test_empty_object_is_an_object(store: Storage) -> None:
    assert store.put_if_absent("empty", b"")

    assert store.get("empty") == b""
    info = store.head("empty")
    assert info is not None
    assert info.size_bytes == 0


def test_ranges_are_cut_like_slices(store: Storage) -> None:
    body = bytes(range(100))
    store.put_if_absent("r", body)

    assert store.get("r", 10, 20) == body[10:20]
    assert store.get("r", 90) == body[90:]
    assert store.get("r", 95, 1000) == body[95:]
    assert store.get("r", 0, 1) == body[:1]


def test_open_tells_what_an_http_answer_needs(store: Storage) -> None:
    body = secrets.token_bytes(600_000)
    store.put_if_absent("x.opus", body, content_type="audio/ogg")

    with store.open("x.opus", 1000, 400_000) as part:
        assert (part.size_bytes, part.start, part.end) == (600_000, 1000, 400_000)
        assert part.content_type == "audio/ogg"
        assert b"".join(part) == body[1000:400_000]


def test_body_may_be_left_half_read(store: Storage) -> None:
    store.put_if_absent("x", secrets.token_bytes(1_000_000))

    with store.open("x") as part:
        first = next(iter(part))

    assert first


def test_range_behind_the_end_is_an_error_of_its_own(store: Storage) -> None:
    store.put_if_absent("r", b"12345")

    with pytest.raises(RangeNotSatisfiable):
        store.get("r", 5, 6)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (3, 3), (3, 2)])
def test_impossible_range_is_refused(store: Storage, start: int, end: int | None) -> None:
    store.put_if_absent("r", b"12345")

    with pytest.raises(ValueError, match="no bytes from"):
        store.get("r", start, end)


def test_missing_object_is_known_to_be_missing(store: Storage) -> None:
    assert store.head("nothing/here") is None
    with pytest.raises(ObjectNotFound):
        store.get("nothing/here")
    store.delete("nothing/here")


def test_deleted_key_can_be_put_again(store: Storage) -> None:
    store.put_if_absent("a/b", b"old")
    store.delete("a/b")

    assert store.head("a/b") is None
    assert store.put_if_absent("a/b", b"new")
    assert store.get("a/b") == b"new"


def test_listing_is_bound_to_its_prefix(store: Storage) -> None:
    keys = ["seg/t1/e1/2", "seg/t1/e1/1", "seg/t1/e10/1", "seg/t2/e1/1", "seg.x", "seg/t1/e1.x"]
    for key in keys:
        store.put_if_absent(key, key.encode())

    for prefix in ("", "seg", "seg/", "seg/t1/e1", "seg/t1/e1/", "nowhere/"):
        listed = sorted(info.key for info in store.list(prefix))
        assert listed == sorted(key for key in keys if key.startswith(prefix))
    (info,) = store.list("seg/t2/")
    assert (info.size_bytes, info.digest) == (11, sha256(b"seg/t2/e1/1"))


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.b", "a b", "ä", "a\n", "a" * 999],
)
def test_key_that_could_leave_its_place_is_refused(store: Storage, key: str) -> None:
    for call in (
        lambda: store.put_if_absent(key, b""),
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.open_upload(key),
    ):
        with pytest.raises(ValueError, match="cannot be a key"):
            call()


def test_upload_is_invisible_until_complete_and_then_whole(store: Storage) -> None:
    parts = [secrets.token_bytes(MIN_PART_BYTES), secrets.token_bytes(1000)]
    upload_id = store.open_upload("mp/a.mp3", content_type="audio/mpeg")
    tags = [store.add_part("mp/a.mp3", upload_id, n, part) for n, part in enumerate(parts, 1)]
    assert store.head("mp/a.mp3") is None
    assert list(store.list()) == []

    assert store.complete_if_absent("mp/a.mp3", upload_id, tags)

    info = store.head("mp/a.mp3")
    assert info is not None
    assert store.get("mp/a.mp3") == b"".join(parts)
    assert (info.digest, info.content_type) == (sha256(b"".join(parts)), "audio/mpeg")


def test_part_sent_again_replaces_the_first(store: Storage) -> None:
    upload_id = store.open_upload("mp/a")
    store.add_part("mp/a", upload_id, 1, b"old")
    tag = store.add_part("mp/a", upload_id, 1, b"new")

    assert store.complete_if_absent("mp/a", upload_id, [tag])

    assert store.get("mp/a") == b"new"


def test_second_upload_of_a_key_changes_nothing(store: Storage) -> None:
    results = []
    for body in (b"first", b"second"):
        upload_id = store.open_upload("mp/a")
        tag = store.add_part("mp/a", upload_id, 1, body)
        results.append(store.complete_if_absent("mp/a", upload_id, [tag]))
        store.abort("mp/a", upload_id)

    assert results == [True, False]
    assert store.get("mp/a") == b"first"


def test_completing_twice_says_that_the_object_exists(store: Storage) -> None:
    upload_id = store.open_upload("mp/a")
    tag = store.add_part("mp/a", upload_id, 1, b"body")
    store.complete_if_absent("mp/a", upload_id, [tag])

    assert store.complete_if_absent("mp/a", upload_id, [tag]) is False
    assert store.get("mp/a") == b"body"


def test_aborted_upload_is_lost_and_leaves_nothing(store: Storage) -> None:
    upload_id = store.open_upload("mp/a")
    tag = store.add_part("mp/a", upload_id, 1, b"body")
    store.abort("mp/a", upload_id)
    store.abort("mp/a", upload_id)

    with pytest.raises(UploadLost):
        store.complete_if_absent("mp/a", upload_id, [tag])
    assert store.head("mp/a") is None


def test_probe_finds_every_promise_kept_and_leaves_nothing(store: Storage) -> None:
    report = probe(store)

    assert report.problems == ()
    assert report.put_is_conditional
    assert report.signs_links is (True if isinstance(store, S3Storage) else None)
    assert list(store.list()) == []


# --- folder


def test_killed_writer_leaves_no_half_object(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    (tmp_path / ".unfinished" / "tmpabc").write_bytes(b"half")

    assert list(store.list()) == []
    assert store.put_if_absent("a", b"whole")


def test_folder_below_an_object_is_refused(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    store.put_if_absent("a", b"object")

    with pytest.raises(StorageRefused, match="a"):
        store.put_if_absent("a/b", b"")


def test_full_disk_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStorage(tmp_path)

    def no_space(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageUnavailable, match="No space left") as caught:
        store.put_if_absent("a", b"body")

    assert caught.value.retry
    assert store.head("a") is None
    assert list((tmp_path / ".unfinished").iterdir()) == []


def test_folder_that_cannot_be_made_names_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageRefused, match=f"{tmp_path}/file/objects"):
        FolderStorage(tmp_path / "file" / "objects")


# --- S3


def test_signed_link_answers_anybody_and_only_as_signed(s3_storage: S3Storage) -> None:
    s3_storage.put_if_absent("rec/a.mp3", b"0123456789", content_type="audio/mpeg")
    link = s3_storage.sign("rec/a.mp3", 60, filename="周会 notes.mp3")
    assert link is not None

    part = requests.get(link, headers={"Range": "bytes=2-4"}, timeout=5)
    bare = requests.get(link.partition("?")[0], timeout=5)

    assert (part.status_code, part.content) == (206, b"234")
    disposition = urllib.parse.unquote(part.headers["Content-Disposition"])
    assert disposition == "attachment; filename*=UTF-8''周会 notes.mp3"
    assert bare.status_code == 403


def test_wrong_key_names_what_to_check(s3_server: servers.SeaweedFS) -> None:
    address = s3_server.s3
    with (
        S3Storage(
            address.bucket,
            endpoint_url=address.endpoint_url,
            access_key=address.access_key,
            secret_key="wrong",
        ) as store,
        pytest.raises(StorageRefused, match=r"access denied .*check access key and rights"),
    ):
        store.put_if_absent("a", b"")


def test_missing_bucket_is_made_only_when_asked(s3_server: servers.SeaweedFS) -> None:
    address = s3_server.s3
    where = f"s3://test-{secrets.token_hex(4)}/pre/fix?endpoint={address.endpoint_url}"
    keys = {"access_key": address.access_key, "secret_key": address.secret_key}

    with (
        make_storage(where, **keys) as store,
        pytest.raises(StorageRefused, match="no such bucket; make it"),
    ):
        store.put_if_absent("a", b"")

    with make_storage(where, **keys, create=True) as store:
        assert store.put_if_absent("a", b"")
    with make_storage(where, **keys, create=True) as store:
        assert store.get("a") == b""


def test_store_without_conditions_is_asked_first(s3_server: servers.SeaweedFS) -> None:
    address = s3_server.s3
    prefix = secrets.token_hex(8)
    where = f"s3://{address.bucket}/{prefix}?endpoint={address.endpoint_url}&conditional=no"

    with make_storage(where, access_key=address.access_key, secret_key=address.secret_key) as store:
        assert store.put_if_absent("a", b"first")
        assert not store.put_if_absent("a", b"second")
        assert store.get("a") == b"first"


def test_private_endpoint_signs_nothing_or_for_its_public_name(
    s3_server: servers.SeaweedFS,
) -> None:
    where = f"s3://bucket?endpoint={s3_server.url}&public="
    keys = {"access_key": "k", "secret_key": "s"}

    with make_storage(f"{where}none", **keys) as store:
        assert store.sign("a", 60) is None
    with make_storage(f"{where}https://files.example.com", **keys) as store:
        link = store.sign("a", 60)
    assert link is not None
    assert link.startswith("https://files.example.com/bucket/a?")


def test_absent_store_is_worth_another_try() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))  # bound, not listening: every connection is refused
        endpoint = f"http://127.0.0.1:{door.getsockname()[1]}"
        with (
            make_storage(f"s3://bucket?endpoint={endpoint}", access_key="k", secret_key="s") as s3,
            pytest.raises(StorageUnavailable, match="s3://bucket/a") as caught,
        ):
            s3.head("a")

    assert caught.value.retry


# --- addresses


@pytest.mark.parametrize(
    ("where", "kind"),
    [("folder:{}", FolderStorage), ("{}", FolderStorage), ("memory:", MemoryStorage)],
)
def test_address_names_the_kind_of_store(where: str, kind: type, tmp_path: Path) -> None:
    assert isinstance(make_storage(where.format(tmp_path)), kind)


@pytest.mark.parametrize(
    ("where", "message"),
    [("s3://b?endpont=x", "unknown option 'endpont'"), ("s3:///prefix", "no bucket")],
)
def test_senseless_address_is_explained(where: str, message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        make_storage(where)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("rec/x-1.ogg", "audio/ogg"),
        ("rec/x-1.chapters.json", "application/json+chapters"),
        ("x.json", "application/json"),
        ("x", "application/octet-stream"),
    ],
)
def test_ending_of_a_key_tells_the_content_type(tmp_path: Path, key: str, kind: str) -> None:
    store = FolderStorage(tmp_path)
    store.put_if_absent(key, b"")

    info = store.head(key)

    assert info is not None
    assert info.content_type == kind


def test_report_explains_each_failure() -> None:
    bad = Report(
        put_is_conditional=False,
        complete_is_conditional=True,
        reads_ranges=False,
        signs_links=False,
    )

    first, second, third = bad.problems
    assert "conditional=no" in first
    assert "seek" in second
    assert "public=none" in third


def test_root_of_a_folder_may_be_moved(tmp_path: Path) -> None:
    FolderStorage(tmp_path / "old").put_if_absent("a/b", b"body")
    shutil.move(tmp_path / "old", tmp_path / "new")

    assert FolderStorage(tmp_path / "new").get("a/b") == b"body"
