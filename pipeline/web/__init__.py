"""The HTTP door: hooks, the episode API, live sound, the player and admin pages, health.

One module a theme, each with `routes(site)`; `site.Site` is what they share. WebSocket upgrades on
the same port are `streaming.server`'s.
"""

from __future__ import annotations

from fastapi import FastAPI

from pipeline.services import Services
from pipeline.web import (
    admin,
    chapters,
    control,
    episodes,
    files,
    health,
    hooks,
    live,
    metrics,
    problems,
    speech,
)
from pipeline.web.site import Site
from streaming.gateway import Gateway


def make_web(services: Services, gateway: Gateway) -> FastAPI:
    """The application; `services` must outlive it, and `gateway` runs while it does."""
    site = Site(services, gateway)
    app = FastAPI(
        title="Notecast",
        description="Meeting notes in, a live voice out.",
        version="1",
        docs_url="/docs",
        redoc_url=None,
        lifespan=site.lifespan,
    )
    problems.install(app)
    for theme in (hooks, episodes, control, files, health, live, chapters, speech, admin, metrics):
        app.include_router(theme.routes(site))
    files.mount_static(app)
    admin.mount_static(app)
    return app
