"""Chapters that are spoken only when somebody opens them.

The short form of a long note leaves chapters out and offers them. An opened one becomes an episode
of its own with a link of its own, once for each chapter, however many people open it; the row that
the note came from is not written for it, and no group or system hears of it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from connectors.base import Accepted
from pipeline import intake, operate
from pipeline.errors import NotFound, Refused
from pipeline.models import episode
from pipeline.script import Script, estimate_s
from pipeline.services import Services


def offered(services: Services, key: str) -> list[dict[str, Any]]:
    """The chapters that an episode offers, none before its script is written.

    Returns:
        `number` (from 1), `title` and `minutes` (a guess, at least 1) of each.

    Raises:
        NotFound: there is no such episode.
    """
    script = _script(_find(services, key))
    if script is None:
        return []
    return [
        {"number": number, "title": one.title, "minutes": max(1, math.ceil(estimate_s(one) / 60))}
        for number, one in enumerate(map(script.opened, range(len(script.offered))), 1)
    ]


def open_chapter(services: Services, key: str, number: int, actor: str) -> Accepted:
    """Let a chapter be spoken; whoever opens it again gets the same episode.

    One that failed or was stopped is spoken again. Blocks.

    Args:
        number: from 1, as in `offered`.
        actor: the link or key whose holder opens it.

    Raises:
        NotFound: no such episode, or it offers no such chapter.
        DatabaseUnavailable: nothing was stored, as far as can be known.
    """
    row = _find(services, key)
    script = _script(row)
    count = len(script.offered) if script is not None else 0
    if script is None or not 1 <= number <= count:
        raise NotFound(f"episode {key} offers no chapter {number}; {_how_many(count)}")
    taken = intake.take_script(
        services.database,
        services.links,
        services.doors["api"],
        script.opened(number - 1),
        delivery_key=f"chapter/{row.id}/{number}",
        wishes={"casting": row.wishes["casting"], "heard": row.script.get("voices", {})},
        asked_by=actor,
    )
    services.sender.committed(taken.wake_ups)
    accepted = taken.accepted
    if accepted.status in ("failed", "cancelled"):
        return _again(services, accepted, actor)
    return accepted


def _again(services: Services, accepted: Accepted, actor: str) -> Accepted:
    with suppress(Refused):  # somebody else opened it in the same moment
        operate.revive(services, accepted.episode, actor=actor)
    return Accepted(accepted.episode, "queued", accepted.listen_url, duplicate=True)


def _find(services: Services, key: str) -> Any:
    with services.database.read() as connection:
        row = connection.execute(
            sa.select(episode.c.id, episode.c.wishes, episode.c.script).where(episode.c.key == key)
        ).first()
    if row is None:
        raise NotFound(f"there is no episode {key}")
    return row


def _script(row: Any) -> Script | None:
    """The script, if it is written and offers chapters."""
    has_more = row.script and row.script.get("offered")
    return Script.from_dict(row.script) if has_more else None


def _how_many(count: int) -> str:
    if count == 0:
        return "it offers none"
    return f"it offers {count}, numbered from 1"
