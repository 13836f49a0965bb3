"""Opens the dashboard to the first browser that presents a token: for `taskflow dashboard`, which has no other way to identify a person."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from taskflow.dashboard.acts import Acts
from taskflow.dashboard.application import dashboard_with
from taskflow.dashboard.guard import HEADERS, Access
from taskflow.dashboard.live import Live

KNOWN: Final = "taskflow.is_known"  # set in the scope of a request with the right cookie
USED: Final = "taskflow.is_used"  # set in the scope of a request without the cookie, but with the token, which is no longer valid


def dashboard_alone(live: Live, acts: Acts, actor: str, token: str, cookie: str) -> ASGIApp:
    """Return a dashboard with these live pages and actions, in which `actor` may act and see arguments.

    The first GET with the query ``token=...`` gets a cookie whose name is `cookie`, and is redirected to the overview, so that no history
    keeps the token. From then on the token is invalid, and every request needs the cookie.
    """

    def authorize(request: Request) -> Access | None:
        if USED in request.scope:
            raise HTTPException(403, "This URL has been used: start `taskflow dashboard` again.")
        return Access(actor, True, True) if KNOWN in request.scope else None

    app = dashboard_with(live, acts, authorize)
    return _OneBrowser(app, token, cookie)


class _OneBrowser:
    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token = token
        self._is_used = False
        self._cookie = cookie
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            has_token = request.method == "GET" and _is_same(request.query_params.get("token"), self._token)
            if _is_same(request.cookies.get(self._cookie), self._session):
                scope[KNOWN] = True
            elif has_token and self._is_used:
                scope[USED] = True
            elif has_token:
                self._is_used = True
                answer = RedirectResponse("/", 303, HEADERS)
                # Without Secure, because this is served over plain HTTP, usually on loopback. Lax, not Strict: after following a link
                # from another page, such as a web terminal, a browser would not send a strict cookie with the redirected request.
                answer.set_cookie(self._cookie, self._session, httponly=True, samesite="lax")
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_same(given: str | None, secret: str) -> bool:
    """Compare in constant time, which reveals nothing about the secret."""
    return given is not None and secrets.compare_digest(given.encode("utf-8", "replace"), secret.encode())
