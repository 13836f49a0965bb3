"""A client of the dashboard, which behaves like a browser, and reads pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from taskflow.dashboard import Access, dashboard
from taskflow.dashboard.guard import Authorize

ADA = Access("ada", actions=True, show_arguments=True)
PREFIX = "/admin/jobs"


class Page:
    """A page: its status, its tags with their attributes, and its text."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.code = answer.status_code
        reader = _Reader()
        reader.feed(answer.text)
        self.tags = reader.tags
        self.text = re.sub(r"\s+", " ", "".join(reader.texts))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]

    @property
    def links(self) -> list[str]:
        """Return the URLs that links lead to, and the buttons of forms that only have hidden fields."""
        found, fields, action = list[str](), list[tuple[str, str]](), ""
        for name, tag in self.tags:
            if name == "a":
                found.append(tag["href"])
            elif name == "form":
                fields, action = [], tag["action"] if tag.get("method") == "get" else ""
            elif name == "input":
                fields, action = [*fields, (tag.get("name", ""), tag.get("value", ""))], action if tag.get("type") == "hidden" else ""
            elif name == "button" and action:
                found.append(f"{action}?{urlencode([*fields, *([(tag['name'], tag['value'])] if 'name' in tag else [])])}")
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("" if tag in ("b", "span", "code", "time", "a", "text") else " ")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class Site:
    """A dashboard that is mounted below a prefix, as in an application."""

    def __init__(self, authorize: Authorize | None = lambda request: ADA) -> None:
        host = Starlette(routes=[Mount(PREFIX, dashboard(authorize=authorize))])
        transport = httpx.ASGITransport(app=host)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://host", headers={"Host": "host"})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.client.aclose()

    async def get(self, path: str, code: int = 200, **query: Any) -> Page:
        page = Page(await self.client.get(_url(path), params=query or None))
        assert page.code == code, page.text
        return page

    async def post(self, path: str, code: int = 200, headers: dict[str, str] | None = None, **fields: Any) -> Page:
        """Send a form as a browser does, and follow the redirect."""
        sent = {"Sec-Fetch-Site": "same-origin"} if headers is None else headers
        page = Page(await self.client.post(_url(path), data=fields, headers=sent, follow_redirects=True))
        assert page.code == code, page.text
        return page


def _url(path: str) -> str:
    return path if path.startswith(PREFIX) else PREFIX + path
