"""Parses forms, and the filters by which a form or a URL selects jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, cast
from urllib.parse import parse_qsl

from starlette.datastructures import ImmutableMultiDict, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from taskflow.app.bulk_actions import JobSelection, view_of
from taskflow.broker.admin import View

FILTERS: Final = ("status", "queue", "job", "tag", "error", "header")
MAX_FORM: Final = 65_536  # maximum bytes of a form
MAX_FIELDS: Final = 1_000

Fields = ImmutableMultiDict[str, str]


async def form_of(request: Request) -> Fields:
    """Return the fields of a form. Raises HTTPException if it's too large, incomplete, or not URL-encoded."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "The dashboard accepts only forms.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM:
                raise HTTPException(413, "This form is too large.")
        return ImmutableMultiDict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except (ValueError, ClientDisconnect) as error:
        raise HTTPException(400, "This form cannot be read.") from error


def filters_of(fields: Fields | QueryParams) -> dict[str, str]:
    """Return the filters that are filled in, by name."""
    return {name: text for name in FILTERS if (text := fields.get(name, "").strip())}


def view_of_filters(filters: Mapping[str, str]) -> View:
    """Return the view of the matching jobs. Raises HTTPException for an invalid filter."""
    with refusing():
        return view_of("page", cast(JobSelection, filters))


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a ValueError or a TypeError into a response with status 400 and the same text."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise HTTPException(400, str(error)) from error


def whole(text: str | None, default: int, least: int, most: int) -> int:
    """Return a number from a URL, kept within its bounds, or the default if it isn't a number."""
    return min(max(int(text), least), most) if text and text.isascii() and text.isdigit() and len(text) < 20 else default
