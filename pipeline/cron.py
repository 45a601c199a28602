"""When a cron expression fires: five fields, read as wall-clock time of an IANA zone.

Each wall-clock time fires once. One that the clock skips in spring fires at the first instant after
the gap; one that the clock shows twice in autumn fires the first time only. The same rule holds for
`*` and steps: "every ten minutes" pauses for the repeated hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from pipeline.errors import Misconfigured

_MINUTE = timedelta(minutes=1)


def next_fire(cron: str, zone: str, after: datetime) -> datetime:
    """The first fire time later than `after`, in UTC.

    Args:
        after: with time zone.

    Raises:
        Misconfigured: not five fields, not a zone, or it never fires.
    """
    start = after.astimezone(_zone(zone)).replace(tzinfo=None)
    for fire in _fires(cron, zone, start):
        if fire > after:
            return fire
    raise Misconfigured(f"cron: {cron!r} never fires")


def last_fire(cron: str, zone: str, before: datetime) -> datetime:
    """The last fire time earlier than `before`, in UTC; errors as `next_fire`."""
    here = before.astimezone(_zone(zone))
    start = here.replace(tzinfo=None)
    if here.fold:  # later wall-clock times have been shown already
        start += _offset(here.replace(fold=0)) - _offset(here)
    for fire in _fires(cron, zone, start, backward=True):
        if fire < before:
            return fire
    raise Misconfigured(f"cron: {cron!r} never fires")


def _fires(cron: str, zone: str, start: datetime, *, backward: bool = False) -> Iterator[datetime]:
    """Instants of the matching wall-clock times; the mapping keeps their order."""
    if len(cron.split()) != 5:
        raise Misconfigured(
            f'cron: {cron!r} needs five fields: minute hour day month weekday, like "55 8 * * 1-5"'
        )
    try:
        times = CronSim(cron, start, backward)  # without a zone it knows no gaps of its own
    except CronSimError as error:
        raise Misconfigured(f"cron: {cron!r}: {str(error).lower()}") from None
    for local in times:
        yield _instant(local, _zone(zone))


def _instant(local: datetime, zone: ZoneInfo) -> datetime:
    """The first instant at which the clock of the zone shows `local` or, in a gap, later."""
    instant = local.replace(tzinfo=zone).astimezone(UTC)
    while instant.astimezone(zone).replace(tzinfo=None) != local:
        local += _MINUTE
        instant = local.replace(tzinfo=zone).astimezone(UTC)
    return instant


def _offset(local: datetime) -> timedelta:
    offset = local.utcoffset()
    assert offset is not None
    return offset


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Misconfigured(
            f'timezone: no zone {name!r}; write an IANA name, like "Europe/Berlin"'
        ) from None
