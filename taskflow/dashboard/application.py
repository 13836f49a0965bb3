"""Makes the ASGI application of the dashboard."""

from __future__ import annotations

import logging
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from taskflow.dashboard import pages
from taskflow.dashboard.acts import Acts, amend_queue, amend_schedule
from taskflow.dashboard.guard import Authorize, Guard
from taskflow.dashboard.rendering import STYLE, message_page
from taskflow.model.errors import BrokerError

log: Final = logging.getLogger("taskflow.dashboard")


def dashboard(*, authorize: Authorize | None = None) -> ASGIApp:
    """Return the dashboard of this application's broker, as an ASGI application.

    Mount it in Starlette, FastAPI or another ASGI framework: ``app.mount("/jobs", dashboard(authorize=...))``. It calls the broker on the
    event loop of its host.

    `authorize`  a function, plain or async, that gets the request, a `starlette.requests.Request`, and returns an `Access`, or None to
                 refuse it. It is called for each request. A plain function is called in a thread. Without `authorize` the dashboard is
                 closed: each request is answered with 403

    The dashboard answers 503 while the store does not answer.
    """
    acts = Acts()
    routes = [
        Route("/", pages.overview),
        Route("/jobs", pages.jobs),
        Route("/jobs/{id}", pages.job),
        Route("/act", acts.preview),
        Route("/act", acts.begin, methods=["POST"]),
        Route("/act/{name}", acts.progress),
        Route("/act/{name}/stop", acts.stop, methods=["POST"]),
        Route("/failures", pages.failures),
        Route("/queues/{name:path}", pages.queue),
        Route("/queues/{name:path}", amend_queue, methods=["POST"]),
        Route("/workers", pages.workers),
        Route("/schedules", pages.schedule_list),
        Route("/schedules", amend_schedule, methods=["POST"]),
        Route("/charts", pages.chart_page),
        Route("/audit", pages.audit),
        Route("/style.css", _style),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refused, BrokerError: _unavailable}), authorize)


async def _style(request: Request) -> Response:
    return Response(STYLE, media_type="text/css", headers={"Cache-Control": "private, max-age=31536000, immutable"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = "There is no such page." if error.status_code == 404 and error.detail == "Not Found" else error.detail
    answer = message_page(request, text, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _unavailable(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, error)  # for the operator: the message names the server
    return message_page(request, "The store does not answer at the moment.", 503)
