"""Live links: a row that can be revoked, and a token that needs no look-up to be checked.

The token is computed from the row, so a repeated delivery gets the very same link.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pipeline import ids
from pipeline.database import Database, affected, now_ms
from pipeline.errors import NotFound
from pipeline.models import episode, listen_link
from streaming.links import LinkStatus, listen_url
from streaming.orders import FORK_SCOPE
from streaming.tokens import Grant, KeyRing, Role

FILE_SCOPE = "file"

_INSERT = (
    listen_link.insert()
    .values(
        created_ms=now_ms(),
        expires_ms=now_ms() + sa.bindparam("lifetime_ms", type_=sa.BigInteger),
    )
    .returning(listen_link)
)


class Links:
    """Makes and checks the links of one installation.

    Args:
        base_url: what links begin with, without a slash at the end.
        days: how long a link works.
        may_fork: whether whoever only listens may have a reading of their own.
    """

    def __init__(self, ring: KeyRing, *, base_url: str, days: int, may_fork: bool = False) -> None:
        self.ring = ring
        self._scopes = (FORK_SCOPE,) if may_fork else ()
        self._base_url = base_url
        self._lifetime_ms = days * 86_400_000

    def create(
        self, connection: sa.Connection, *, episode_id: str, key: str, role: Role = "listener"
    ) -> str:
        """Add a link for an episode to the open transaction; gives its address."""
        row = connection.execute(
            _INSERT,
            {
                "id": ids.ulid(),
                "episode_id": episode_id,
                "slug": ids.slug(),
                "role": role,
                "lifetime_ms": self._lifetime_ms,
            },
        ).one()
        return self.url(row, key)

    def url(self, row: sa.Row[Any], key: str) -> str:
        """The address of a listen_link row; the token stands in the fragment, so no log sees it."""
        token = self.ring.sign(
            Grant(
                link=row.id,
                role=row.role,
                expires=row.expires_ms // 1000,
                sid=key,
                scopes=self._scopes if row.role == "listener" else (),
            )
        )
        return listen_url(self._base_url, row.slug, token)

    def file_url(self, key: str, extension: str, *, now_s: float, hours: float = 24) -> str:
        """An address that fetches one recording without any other proof, for players.

        Args:
            key: of the episode.
            extension: `mp3`, `ogg`, `wav`, `vtt` or `chapters.json`.
        """
        grant = Grant(
            link="",
            role="listener",
            expires=int(now_s + hours * 3600),
            sid=key,
            scopes=(FILE_SCOPE,),
        )

        return f"{self._base_url}/episodes/{key}.{extension}?ticket={self.ring.sign(grant)}"


def owner_url(database: Database, links: Links, key: str) -> str:
    """The link of an episode's owner; made when it is asked for first, the same ever after.

    Raises:
        NotFound: there is no such episode.
    """
    with database.write() as connection:
        row = connection.execute(
            sa.select(episode.c.id).where(episode.c.key == key).with_for_update()
        ).first()
        if row is None:
            raise NotFound(f"there is no episode {key}")
        found = connection.execute(
            sa.select(listen_link)
            .where(
                listen_link.c.episode_id == row.id,
                listen_link.c.role == "owner",
                listen_link.c.revoked_ms.is_(None),
                listen_link.c.expires_ms > now_ms(),
            )
            .order_by(listen_link.c.id)
            .limit(1)
        ).first()
        if found is not None:
            return links.url(found, key)
        return links.create(connection, episode_id=row.id, key=key, role="owner")


def status(database: Database, link_id: str) -> LinkStatus | None:
    """What the table says about a link; None if there is no such link."""
    with database.read() as connection:
        row = connection.execute(
            sa.select(listen_link.c.revoked_ms, listen_link.c.expires_ms).where(
                listen_link.c.id == link_id
            )
        ).first()
    if row is None:
        return None
    return LinkStatus(revoked=row.revoked_ms is not None, expires=row.expires_ms / 1000)


def revoke(database: Database, link_id: str) -> bool:
    """Revoke a link; True if it worked until now."""
    with database.write() as connection:
        return bool(
            affected(
                connection.execute(
                    listen_link.update()
                    .where(listen_link.c.id == link_id, listen_link.c.revoked_ms.is_(None))
                    .values(revoked_ms=now_ms())
                )
            )
        )
