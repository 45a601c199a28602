"""Trying on a store what we rely on: `notecast storage check`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from pipeline.storage.contract import (
    Storage,
)


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
