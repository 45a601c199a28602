"""What must not lie open in SQL: secrets that tools handed us, and those that wait for a yes.

AES-256-GCM with a key from the data directory; the endpoint's id is bound to the text, so a row
copied to another endpoint does not open.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from connectors.signing import secret_label
from pipeline import ids
from pipeline.database import Database, now_ms
from pipeline.errors import Misconfigured, NotFound, Refused
from pipeline.models import duty, endpoint_secret

_NONCE_BYTES = 12
_MOST_PENDING = 5  # anybody can post a handshake; the newest are what an operator looks for


class Vault:
    """Seals and opens texts of one installation.

    Args:
        key: from a file that only we can read.
    """

    def __init__(self, key: str) -> None:
        self._cipher = AESGCM(hashlib.sha256(key.encode()).digest())

    def seal(self, text: str, endpoint_id: str) -> str:
        """Base64 of nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode(), endpoint_id.encode())
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, endpoint_id: str) -> str:
        """The inverse of `seal`.

        Raises:
            Misconfigured: another key, another endpoint, or a damaged row.
        """
        raw = base64.b64decode(sealed)
        try:
            text = self._cipher.decrypt(
                raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], endpoint_id.encode()
            )
        except (InvalidTag, ValueError):
            raise Misconfigured(
                "a kept secret does not open: DATA/seal-key is not the one it was sealed with; "
                "put the old file back, or remove the endpoint's secrets with connectors rotate"
            ) from None
        return text.decode()

    def seal_state(self, state: Mapping[str, Any], endpoint_id: str) -> dict[str, Any]:
        """An upkeep state with everything under `secrets` sealed."""
        kept = dict(state)
        if "secrets" in kept:
            kept["secrets"] = self.seal(json.dumps(kept["secrets"]), endpoint_id)
        return kept

    def open_state(self, state: Mapping[str, Any] | None, endpoint_id: str) -> dict[str, Any]:
        """The inverse of `seal_state`; an endpoint without a state has an empty one."""
        kept = dict(state or {})
        if "secrets" in kept:
            kept["secrets"] = json.loads(self.open(kept["secrets"], endpoint_id))
        return kept


def states(connection: sa.Connection, vault: Vault) -> dict[str, dict[str, Any]]:
    """What each endpoint's connector may use, by endpoint id: upkeep state and accepted secrets."""
    found = {
        row.endpoint_id: vault.open_state(row.state, row.endpoint_id)
        for row in connection.execute(
            sa.select(duty.c.endpoint_id, duty.c.state).where(duty.c.kind == "upkeep")
        )
    }
    accepted = connection.execute(
        sa.select(endpoint_secret.c.endpoint_id, endpoint_secret.c.sealed)
        .where(endpoint_secret.c.state == "active", endpoint_secret.c.sealed.is_not(None))
        .order_by(endpoint_secret.c.id.desc())
    )
    for row in accepted:
        state = found.setdefault(row.endpoint_id, {})
        state.setdefault("accepted", []).append(vault.open(row.sealed, row.endpoint_id))
    return found


def keep_pending(
    database: Database, connection: sa.Connection, vault: Vault, endpoint_id: str, secret: str
) -> None:
    """Keep what a handshake brought until an operator accepts it; never touches an active one."""
    connection.execute(
        database.insert(endpoint_secret)
        .values(
            id=ids.ulid(),
            endpoint_id=endpoint_id,
            label=secret_label(secret),
            state="pending",
            sealed=vault.seal(secret, endpoint_id),
            created_ms=now_ms(),
        )
        .on_conflict_do_nothing()
    )
    of_endpoint = sa.and_(
        endpoint_secret.c.endpoint_id == endpoint_id, endpoint_secret.c.state == "pending"
    )
    newest = (
        sa.select(endpoint_secret.c.id)
        .where(of_endpoint)
        .order_by(endpoint_secret.c.id.desc())
        .limit(_MOST_PENDING)
    )
    kept = list(connection.execute(newest).scalars())
    connection.execute(
        endpoint_secret.delete().where(of_endpoint, endpoint_secret.c.id.not_in(kept))
    )


def accept(connection: sa.Connection, endpoint_id: str, label: str = "") -> str:
    """Make a pending secret active; gives its label.

    Raises:
        NotFound: nothing is pending, or nothing of this label.
        Refused: several are pending and no label says which.
    """
    waiting = list(
        connection.execute(
            sa.select(endpoint_secret.c.label)
            .where(endpoint_secret.c.endpoint_id == endpoint_id)
            .where(endpoint_secret.c.state == "pending")
            .order_by(endpoint_secret.c.id.desc())
        ).scalars()
    )
    if not waiting or (label and label not in waiting):
        what = f"secret {label}" if label else "secret"
        raise NotFound(f"no {what} is pending here; ask the tool to send its handshake again")
    if not label and len(waiting) > 1:
        raise Refused(f"several secrets are pending: say which, one of {', '.join(waiting)}")
    label = label or waiting[0]
    connection.execute(
        endpoint_secret.update()
        .where(endpoint_secret.c.endpoint_id == endpoint_id, endpoint_secret.c.label == label)
        .values(state="active")
    )
    connection.execute(
        endpoint_secret.delete().where(
            endpoint_secret.c.endpoint_id == endpoint_id, endpoint_secret.c.state == "pending"
        )
    )
    return label


def retire(connection: sa.Connection, endpoint_id: str, label: str) -> None:
    """Forget an accepted secret.

    Raises:
        NotFound: none of this label is kept here.
    """
    gone = connection.execute(
        endpoint_secret.delete()
        .where(endpoint_secret.c.endpoint_id == endpoint_id, endpoint_secret.c.label == label)
        .where(endpoint_secret.c.sealed.is_not(None))
        .returning(endpoint_secret.c.id)
    ).first()
    if gone is None:
        raise NotFound(
            f"no kept secret {label}; those of connectors.toml are retired by removing them there"
        )


def verified(
    database: Database, connection: sa.Connection, endpoint_id: str, labels: set[str]
) -> None:
    """Note that these secrets proved something now."""
    for label in labels:
        insert = database.insert(endpoint_secret).values(
            id=ids.ulid(),
            endpoint_id=endpoint_id,
            label=label,
            state="active",
            created_ms=now_ms(),
            verified_ms=now_ms(),
        )
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=["endpoint_id", "label"],
                set_={"verified_ms": insert.excluded.verified_ms},
            )
        )
