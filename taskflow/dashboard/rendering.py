"""Renders the templates. All stored text is escaped twice: control characters and text-direction marks here, and HTML by Jinja."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from taskflow.model.ids import id_text
from taskflow.model.printable import duration, indented, json_text, one_line, span
from taskflow.model.record import Status, is_parked

HERE: Final = Path(__file__).parent
KINDS: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
VENDOR: Final = HERE / "vendor"  # files of other projects
FILES: Final = {path.name: path.read_bytes() for folder in (HERE, VENDOR) for path in sorted(folder.iterdir()) if path.suffix in KINDS}
VERSION: Final = hashlib.sha256(b"".join(FILES.values())).hexdigest()[:12]  # it changes with the files, so that browsers can cache them

POLLS: Final = "taskflow.polls"  # the scope key that marks a request whose host can't stream
FRAGMENT: Final = "X-Taskflow-Fragment"  # the header with which a script requests a fragment
LIVE: Final = "taskflow.is_live"  # the scope key that marks a request for a page that a script keeps up to date
PLACES: Final = {"": "overview", "queues": "overview", "act": "jobs"}  # menu entries of paths that don't begin with the entry's name

SAID: Final = {
    "none": "Nothing was done: select jobs first.",
    "retry": "The job is back in its queue.",
    "run-now": "The job is due now: it runs as soon as a worker is free.",
    "cancel": "The job is cancelled.",
    "asked": "The running job was asked to stop.",
    "pause": "The pause has begun.",
    "resume": "The pause has ended.",
    "trigger": "The schedule has sent this job.",
}
"""For each value of `said=` in a URL, the text with which the page reports what an action did."""

SLICE: Final = 0.00025  # seconds of rendering after which the event loop runs other tasks
_turns: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()  # pages are rendered one at a time
MAX_ROWS: Final = 200  # maximum number of queues, workers or schedules on a page
MAX_BLOCK: Final = 16_384  # maximum characters of a traceback or a value


def when(at: datetime | None) -> str | Markup:
    """Return how long ago a time was, or how far ahead it is, with the time itself as a tooltip and for programs."""
    if at is None:
        return ""
    seconds = (datetime.now(UTC) - at).total_seconds()
    text = f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"
    # Of these texts, only a time zone's name can contain arbitrary characters. Markup.format() would take four times as long.
    return Markup(f'<time datetime="{at.isoformat()}" title="{escape(absolute(at))}">{text}</time>')


def absolute(at: datetime) -> str:
    return f"{at.replace(microsecond=0, tzinfo=None)} {at.tzname()}"


def block(text: object) -> Markup:
    """Return multi-line text for <pre>. Line breaks are kept, and other control characters are escaped."""
    return Markup("{}").format("\n".join(line[4:] for line in indented(text, MAX_BLOCK).split("\n")))


def code(text: str) -> Markup:
    """Return one-line text in which parts in backticks are marked up as code."""
    parts = one_line(text).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


def digest(name: str) -> str:
    """Return an id for the row with this name, by which a script finds that row in the next version of the page."""
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16]


def path_of(kind: str, name: str) -> str:
    """Return the path of a queue or a job. Browsers drop the segments "." and "..", so queues with these names link to their job list."""
    return f"/jobs?queue={name}" if name in (".", "..") else f"/{kind}/{quote(name.encode('utf-8', 'replace'), safe='')}"


def with_query(path: str, values: Mapping[str, Any]) -> str:
    given = {name: value for name, value in values.items() if value not in (None, "", ())}
    return f"{path}?{urlencode(given, doseq=True, errors='replace')}" if given else path


def _finalized(value: object) -> object:
    """Escape control characters in the values that a template prints. Markup from a filter here or from a macro is left alone."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else "" if value is None else value


_templates: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalized,
    auto_reload=False,
)
for _filter in (when, block, code, digest, span, duration, absolute):
    _templates.filters[_filter.__name__] = _filter
_templates.filters |= {"cut": one_line, "number": "{:,}".format, "as_json": partial(json.dumps, ensure_ascii=False)}
_templates.globals |= {"path_of": path_of, "id_text": id_text, "version": VERSION, "most": MAX_ROWS, "statuses": [*Status]}
_templates.globals |= {"end": Markup("</tbody></table></div>"), "is_parked": is_parked, "with_query": with_query}
_templates.globals |= vars(_templates.get_template("macros.html").module)
for _name in _templates.list_templates():  # compiled now, because compiling for the first viewers would block the host's loop
    _templates.get_template(_name)


def root_of(request: Request) -> str:
    """Return the path below which the dashboard is mounted, without a trailing slash."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def is_fragment(request: Request) -> bool:
    """Return True if a script requests only the content of a page, without its frame."""
    return FRAGMENT in request.headers


async def render(
    request: Request, template: str, title: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Render a page in slices, between which the event loop runs the host's tasks."""
    root = root_of(request)

    def url(path: str, **query: Any) -> str:
        return root + with_query(path, query)

    place = request.scope["path"].removeprefix(root)[1:].partition("/")[0]
    values = {"nav": PLACES.get(place, place), "is_live": LIVE in request.scope} | values
    values |= {"template": template, "title": title, "access": request.scope.get("taskflow.access"), "url": url}
    values["said"] = SAID.get(request.query_params.get("said", ""), "")
    values["stream"] = "" if POLLS in request.scope else url("/live")
    parts = list[str]()
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        since = time.perf_counter()
        for part in _templates.get_template(template if is_fragment(request) else "base.html").generate(values):
            parts.append(part)
            if time.perf_counter() - since > SLICE:
                await asyncio.sleep(0)
                since = time.perf_counter()
    return HTMLResponse("".join(parts), status, headers)


def redirect(request: Request, path: str, said: str = "") -> Response:
    """Redirect to a page, so that a reload does not send the form again. The page shows the text that `SAID` has for `said`."""
    query = f"{'&' if '?' in path else '?'}said={said}" if said else ""
    return RedirectResponse(root_of(request) + path + query, status_code=303)


API: Final = "/api/v1"
UNAVAILABLE: Final = "The store does not answer at the moment."


async def message_page(request: Request, text: str, status: int) -> Response:
    """Return a page with only a message; for the API, a JSON object with the field `error`."""
    if request.scope["path"].removeprefix(root_of(request)).startswith(f"{API}/"):
        return Response(json_text({"error": text}), status, media_type="application/json")
    return await render(request, "message.html", str(status), status, text=text, code=status, is_live=False)
