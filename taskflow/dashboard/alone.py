"""Opens the dashboard to the first browser that presents a token: for `taskflow dashboard`, which has no other way to identify a person."""

from __future__ import annotations

import secrets

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from taskflow.dashboard.acts import Acts
from taskflow.dashboard.application import dashboard_with
from taskflow.dashboard.guard import Access
from taskflow.dashboard.live import Live


def dashboard_alone(live: Live, acts: Acts, actor: str, token: str, cookie: str) -> ASGIApp:
    """Return a dashboard with these live pages and actions, in which `actor` may act and see arguments.

    The first GET with the query ``token=...`` gets a cookie whose name is `cookie`, and is redirected to the overview, so that the token
    stays out of the browser's history. From then on the token is invalid, and every request needs the cookie.
    """
    session, is_used = secrets.token_urlsafe(32), False

    async def authorize(request: Request) -> Access | None:
        nonlocal is_used
        if _is_same(request.cookies.get(cookie), session):
            return Access(actor, True, True)
        if request.method != "GET" or not _is_same(request.query_params.get("token"), token):
            return None
        if is_used:
            raise HTTPException(403, "This URL has been used: start `taskflow dashboard` again.")
        is_used = True
        # Without Secure, because this is served over plain HTTP, usually on loopback. Lax, not Strict: after following a link from another
        # page, such as a web terminal, a browser would not send a strict cookie with the redirected request.
        raise HTTPException(303, headers={"Location": "/", "Set-Cookie": f"{cookie}={session}; HttpOnly; Path=/; SameSite=lax"})

    return dashboard_with(live, acts, authorize)


def _is_same(given: str | None, secret: str) -> bool:
    """Compare in constant time, which reveals nothing about the secret."""
    return given is not None and secrets.compare_digest(given.encode("utf-8", "replace"), secret.encode())
