"""Creates the ASGI application of the dashboard."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from taskflow.dashboard import pages
from taskflow.dashboard.acts import Acts, amend_queue, amend_schedule
from taskflow.dashboard.api import api_routes
from taskflow.dashboard.guard import Authorize, Guard
from taskflow.dashboard.live import Live
from taskflow.dashboard.rendering import API, FILES, KINDS, UNAVAILABLE, message_page
from taskflow.model.errors import BrokerError
from taskflow.model.printable import one_line

CACHED: Final = {"Cache-Control": "private, max-age=31536000, immutable"}

log: Final = logging.getLogger("taskflow.dashboard")


def dashboard(*, authorize: Authorize | None = None) -> ASGIApp:
    """Return the dashboard of this application's broker, as an ASGI application.

    Mount it in Starlette, FastAPI or another ASGI framework: ``app.mount("/jobs", dashboard(authorize=...))``. It calls the broker on the
    event loop of its host.

    `authorize`  a function, plain or async, that receives the request, a `starlette.requests.Request`, and returns an `Access`, or None
                 to refuse the request. It may raise Starlette's HTTPException, for example to redirect to a sign-in. It is called for each
                 request, a plain function in a thread. Without `authorize`, the dashboard is closed: every response is a 403

    While the store does not answer, the response is a 503.
    """
    return dashboard_with(Live(), Acts(), authorize)


def dashboard_with(live: Live, acts: Acts, authorize: Authorize | None) -> ASGIApp:
    routes = [
        Route("/", live.page(pages.overview)),
        Route("/jobs", live.page(pages.jobs)),
        Route("/jobs/{id}", live.page(pages.job)),
        Route("/act", acts.preview),
        Route("/act", acts.begin, methods=["POST"]),
        Route("/act/{name}", acts.progress),
        Route("/act/{name}/stop", acts.stop, methods=["POST"]),
        Route("/failures", live.page(pages.failures)),
        Route("/queues/{name:path}", live.page(pages.queue)),
        Route("/queues/{name:path}", amend_queue, methods=["POST"]),
        Route("/workers", live.page(pages.workers)),
        Route("/schedules", live.page(pages.schedule_list)),
        Route("/schedules", amend_schedule, methods=["POST"]),
        Route("/schedules/calendar", pages.schedule_calendar),
        Route("/charts", live.page(pages.chart_page)),
        Route("/audit", pages.audit),
        *api_routes(API),
        Route("/live", live.stream),
        *(Route(f"/{name}", Response(content, 200, CACHED, KINDS[Path(name).suffix]), methods=["GET"]) for name, content in FILES.items()),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refused, BrokerError: _unavailable}), authorize)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = "There is no such page." if error.status_code == 404 and error.detail == "Not Found" else error.detail
    answer = await message_page(request, text, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _unavailable(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, one_line(request.scope["path"]), error)  # for the operator only: the message names the server
    return await message_page(request, UNAVAILABLE, 503)
