"""`/healthz` and `/readyz`, for supervisors and load balancers."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from pipeline.database import Database
from pipeline.models import worker
from pipeline.web.problems import problem
from pipeline.web.site import Site


def routes(site: Site) -> APIRouter:
    """Operations."""
    handlers = _Health(site)
    router = APIRouter(tags=["operations"])
    router.get("/healthz")(handlers.healthz)
    router.get("/readyz")(handlers.readyz)
    return router


class _Health:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def healthz(self) -> dict[str, bool]:
        """This process answers."""
        return {"ok": True}

    async def readyz(self) -> Response:
        """This process can accept: 200 with the number of voices that are ready, else 503."""
        if self._site.gateway.draining:
            return problem(503, "draining", "this process is going away")
        if not self._site.is_ready:
            return problem(503, "starting", "not ready yet")
        database = self._site.services.database
        voices = await self._site.in_transaction(lambda: ready_voices(database))
        return JSONResponse({"ok": True, "voices": voices})


def ready_voices(database: Database) -> int:
    """How many workers are ready to speak."""
    ready = sa.select(sa.func.count()).where(worker.c.state == "ready", worker.c.slots > 0)
    with database.read() as connection:
        count: int = connection.execute(ready).scalar_one()
    return count
