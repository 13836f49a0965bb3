"""A plugin that runs a worker inside a Litestar application. Needs the extra `litestar`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.exceptions import NotFoundException, ServiceUnavailableException
from litestar.exceptions.responses import create_exception_response
from litestar.plugins import InitPlugin

from taskflow.model.errors import BrokerUnavailable, InvalidJobId, UnknownJob
from taskflow.worker.worker import Worker

log = logging.getLogger(__name__)


class TaskflowPlugin(InitPlugin):
    """Runs a worker inside a Litestar application: ``Litestar(routes, plugins=[TaskflowPlugin(concurrency=50)])``.

    The worker starts once the application's lifespans have begun and its `on_startup` hooks have run. It winds down before the
    lifespans end and the `on_shutdown` hooks run. In its jobs, `ctx.state` is the application's `state`. List this plugin after
    the plugins that open resources for jobs.

    If a request handler raises `InvalidJobId` or `UnknownJob`, the response is a 404, and for `BrokerUnavailable` a 503, unless the
    application has its own handlers for these errors.

    `worker`       False if the worker is a separate process (default True)
    `queues`       the queues to take jobs from, as in `Worker` (default None: every queue)
    `concurrency`  the maximum number of jobs that run at once (default 100)
    `grace`        seconds that running jobs have to finish when the application stops (default 25)

    Raises the same errors as `Worker` when the application starts.
    """

    __slots__ = ("_options", "_worker")

    def __init__(
        self, *, worker: bool = True, queues: str | Sequence[str] | None = None, concurrency: int = 100, grace: float = 25.0
    ) -> None:
        self._worker = worker
        self._options: dict[str, Any] = {"queues": queues, "concurrency": concurrency, "grace": grace}

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the worker and the error handlers to the application. Litestar calls this."""
        own: dict[Any, Any] = {InvalidJobId: _not_found, UnknownJob: _not_found, BrokerUnavailable: _unavailable}
        app_config.exception_handlers = own | dict(app_config.exception_handlers)
        if self._worker:
            # Lifespans begin before the startup hooks and end before the shutdown hooks: a hook starts the worker, and a lifespan ends it.
            stack = AsyncExitStack()

            @asynccontextmanager
            async def lifespan(app: Litestar) -> AsyncIterator[None]:
                async with stack:
                    yield

            async def start(app: Litestar) -> None:
                await stack.enter_async_context(Worker(state=app.state, **self._options))

            app_config.lifespan.append(lifespan)
            app_config.on_startup.append(start)
        return app_config


def _not_found(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    return create_exception_response(request, NotFoundException(detail="there is no such job"))


def _unavailable(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("%s %s: %s", request.method, request.url.path, error)  # for the operator only: the message names the server
    return create_exception_response(request, ServiceUnavailableException(detail="jobs are not available at the moment"))
