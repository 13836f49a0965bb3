"""Decides who may use the dashboard, rejects writes from other sites, and sets security headers."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflow.dashboard.rendering import message_page
from taskflow.model.printable import shown

log: Final = logging.getLogger("taskflow.dashboard")

OWN: Final = ("style-src", "script-src", "img-src", "connect-src", "form-action")
CONTENT_POLICY: Final = "".join(f"{kind} 'self'; " for kind in OWN) + "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"

# `same-origin` and not `no-referrer`: with the latter, browsers send "Origin: null" even with the dashboard's own forms.
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

CLOSED: Final = "The dashboard is closed. The application opens it with dashboard(authorize=...)."
REFUSED: Final = "You may not see this dashboard."
READ_ONLY: Final = "You may view this dashboard, but not change anything."
BROKEN: Final = "The application could not decide whether you may see this dashboard. Its log has the error."
OTHER_SITE: Final = "This request does not come from a page of the dashboard."


class Access(msgspec.Struct, frozen=True):
    """A user's rights in the dashboard.

    `actor`           the user's name, which the audit log records with each action
    `actions`         True to retry, cancel and discard jobs, and to pause queues and schedules (default False: read-only)
    `show_arguments`  True to show the arguments and results of jobs, with secrets hidden (default False)

    Raises TypeError if `actor` is empty or not a string.
    """

    actor: str
    actions: bool = False
    show_arguments: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.actor, str) or not self.actor:
            raise TypeError(f"Access(actor={shown(self.actor)}): expected a user's name, as a str")


Authorize = Callable[[Request], Access | Awaitable[Access | None] | None]


class Guard:
    """Passes only requests that `authorize` allows. Writes need `Access.actions` and the same origin. Sets `scope["taskflow.access"]`."""

    def __init__(self, app: ASGIApp, authorize: Authorize | None) -> None:
        self._app = app
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _as_mounted(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        read = list[Message]()  # the parts of the request that `authorize` has read and the page still needs

        async def receive_and_keep() -> Message:
            read.append(message := await receive())
            return message

        async def receive_again() -> Message:
            return read.pop(0) if read else await receive()

        request = Request(scope, receive_and_keep)
        access, status, others = None, 403, dict[str, str]()
        try:
            access = await self._access_of(request)
            why = self._refusal(request, access)
        except HTTPException as error:
            why, status, others = str(error.detail), error.status_code, dict(error.headers or {})
        except Exception:
            log.exception("the authorize function of dashboard() failed")
            why, status = BROKEN, 500
        if why:
            answer = await message_page(request, why, status)
            answer.headers.update(others)
            await answer(scope, receive, send_with_headers)
        else:
            scope["taskflow.access"] = access
            await self._app(scope, receive_again, send_with_headers)

    def _refusal(self, request: Request, access: Access | None) -> str:
        """Return why the request is refused, or an empty string if it isn't."""
        if access is None:
            return CLOSED if self._authorize is None else REFUSED
        if request.method in ("GET", "HEAD"):
            return ""
        return OTHER_SITE if not is_same_origin(request) else "" if access.actions else READ_ONLY

    async def _access_of(self, request: Request) -> Access | None:
        authorize = self._authorize
        if authorize is None:
            return None
        if inspect.iscoroutinefunction(authorize) or inspect.iscoroutinefunction(getattr(authorize, "__call__", None)):  # noqa: B004
            found = authorize(request)
        else:  # a plain function may query a database, so it runs in a thread
            found = await run_in_threadpool(authorize, request)
        access = await found if inspect.isawaitable(found) else found
        if access is not None and not isinstance(access, Access):
            raise TypeError(f"the authorize function of dashboard() returned {shown(access)}: expected an Access, or None to refuse")
        return access


def _as_mounted(scope: Scope) -> Scope:
    """Return the scope as ASGI defines it below a prefix. Litestar removes the prefix from the path, and sets no root_path."""
    if "litestar_app" not in scope:
        return scope
    whole, rest = re.sub("//+", "/", unquote(scope["raw_path"].decode("ascii", "replace"))).rstrip("/"), scope["path"].rstrip("/")
    root = whole.removesuffix(rest).rstrip("/")
    return {**scope, "root_path": root, "path": root + (rest or "/")}


def is_same_origin(request: Request) -> bool:
    """Return True if a page of this origin sent the request. Browsers send Sec-Fetch-Site over HTTPS and to loopback; without it, the host
    in Origin must be the host of the request, and neither may be missing or empty."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    try:
        origin = urlsplit(request.headers.get("origin", "")).netloc.lower()
    except ValueError:
        return False
    return bool(origin) and origin == request.headers.get("host", "").lower()
