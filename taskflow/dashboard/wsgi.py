"""The dashboard for WSGI hosts, such as Flask and Django. The ASGI application runs on the event loop that callers without a loop share."""

from __future__ import annotations

import atexit
import inspect
from collections.abc import Iterable, Mapping
from http.client import responses
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Scope

from taskflow.app.portal import run_sync
from taskflow.dashboard.acts import Acts
from taskflow.dashboard.application import dashboard_with
from taskflow.dashboard.guard import Access, Authorize
from taskflow.dashboard.live import Live
from taskflow.dashboard.rendering import POLLS
from taskflow.dashboard.selection import MAX_FORM, whole

GIVEN: Final = "taskflow.given"  # the scope key that holds what `authorize` returned or raised in the host's thread


def dashboard_wsgi(*, authorize: Authorize | None = None) -> WSGIApplication:
    """Return the dashboard of this application's broker, as a WSGI application.

    Mount it below a prefix with ``DispatcherMiddleware`` of Werkzeug, or as your framework does. Pages and actions are those of
    `dashboard`. Pages poll for changes every two seconds, because a stream of changes would occupy a server thread.

    `authorize`  as in `dashboard`. A plain function is called in the thread of the request. The WSGI environment is
                 ``request.scope["wsgi.environ"]``

    Raises RuntimeError for a request that is handled inside a running event loop.
    """
    app = application(is_open=authorize is not None)

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        scope, body = _read(environ)
        if authorize is not None:
            try:
                scope[GIVEN] = authorize(Request(scope))
            except Exception as error:
                scope[GIVEN] = error
        status, headers, content = answer_of(app, scope, body)
        start_response(f"{status} {responses.get(status, 'Unknown')}", headers)
        return [] if scope["method"] == "HEAD" else [content]

    return serve


def application(*, is_open: bool = True) -> ASGIApp:
    """Return a dashboard that grants a request the rights found in its scope under `GIVEN`. Requests without rights are refused."""
    acts = Acts()
    atexit.register(_end, acts)  # runs before the store is closed, because taskflow registered the closing earlier
    return dashboard_with(Live(), acts, _given if is_open else None)


def _end(acts: Acts) -> None:
    if acts.are_running:
        run_sync(acts.end())


async def _given(request: Request) -> Access | None:
    found: Any = request.scope.get(GIVEN)
    if isinstance(found, Exception):
        raise found
    access: Access | None = await found if inspect.isawaitable(found) else found
    return access


def answer_of(app: ASGIApp, scope: Scope, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """Run the application on the loop that callers without a loop share, and return its response: the status, headers and content."""
    start: Message = {}
    parts = list[bytes]()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    run_sync(app(scope, receive, send))
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return start["status"], headers, b"".join(parts)


def scope_of(method: str, root: str, path: str, query: str, headers: Mapping[str, str], **others: Any) -> Scope:
    """Return the ASGI scope of a request. `path` is its full path, which begins with `root`."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "root_path": root,
        "path": path,
        "query_string": query.encode("latin-1", "replace"),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()],
        POLLS: True,
        **others,
    }


def _read(environ: WSGIEnvironment) -> tuple[Scope, bytes]:
    """Return the scope and the body of a request. If the body is too long for a form, read only enough of it to refuse it."""
    # WSGI gives the parts of a path as Latin-1
    root, rest = (environ.get(name, "").encode("latin-1", "replace").decode("utf-8", "replace") for name in ("SCRIPT_NAME", "PATH_INFO"))
    headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
    headers |= {name.replace("_", "-"): value for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if (value := environ.get(name))}
    body = environ["wsgi.input"].read(whole(environ.get("CONTENT_LENGTH"), 0, 0, MAX_FORM + 1))
    others: dict[str, Any] = {
        "scheme": environ["wsgi.url_scheme"],
        "server": (environ["SERVER_NAME"], int(environ["SERVER_PORT"])),
        "client": (environ.get("REMOTE_ADDR") or "unknown", 0),
        "wsgi.environ": environ,
    }
    return scope_of(environ["REQUEST_METHOD"], root, root + rest, environ.get("QUERY_STRING", ""), headers, **others), body
