"""Opens the dashboard to the first browser that presents a token: for `taskflow dashboard`, which has no other way to identify a person."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflow.dashboard.acts import Acts
from taskflow.dashboard.application import dashboard_with
from taskflow.dashboard.guard import Access
from taskflow.dashboard.live import Live

KNOWN: Final = "taskflow.is_known"  # set in the scope of a request with the right token or cookie


def dashboard_alone(live: Live, acts: Acts, actor: str, token: str, cookie: str) -> ASGIApp:
    """Return a dashboard with these live pages and actions, in which `actor` may act and see arguments.

    The first GET with the query ``token=...`` gets a cookie of this name. From then on the token is invalid, and every request needs the
    cookie.
    """
    app = dashboard_with(live, acts, lambda request: Access(actor, True, True) if KNOWN in request.scope else None)
    return _OneBrowser(app, token, cookie)


class _OneBrowser:
    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token: str | None = token
        self._cookie = cookie
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Without Secure, because this is served over plain HTTP, usually on loopback.
                value = f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
                MutableHeaders(scope=message).append("Set-Cookie", value)
            await send(message)

        is_first = False
        if scope["type"] == "http":
            request = Request(scope)
            is_first = request.method == "GET" and _is_same(request.query_params.get("token"), self._token)
            if is_first:
                self._token = None
            if is_first or _is_same(request.cookies.get(self._cookie), self._session):
                scope[KNOWN] = True
        await self._app(scope, receive, send_with_cookie if is_first else send)


def _is_same(given: str | None, secret: str | None) -> bool:
    """Compare in constant time, which reveals nothing about the secret."""
    return given is not None and secret is not None and secrets.compare_digest(given.encode("utf-8", "replace"), secret.encode())
