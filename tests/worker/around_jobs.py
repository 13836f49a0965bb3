"""Context managers that record when they begin and end, and a job that runs in a child process inside one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from taskflow import Discard, JobContext, Middleware, configure, depends, job
from taskflow.app.app import default_app

SEEN: list[str] = []


def noting(name: str) -> Callable[[JobContext], AbstractContextManager[None]]:
    @contextmanager
    def note(context: JobContext) -> Iterator[None]:
        SEEN.append(f"{name} begins")
        try:
            yield
        except BaseException as error:
            SEEN.append(f"{name} ends {type(error).__name__}")
            raise
        SEEN.append(f"{name} ends")

    return note


def noting_async(name: str) -> Callable[[JobContext], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def note(context: JobContext) -> AsyncIterator[None]:
        with noting(name)(context):
            yield

    return note


def session() -> Iterator[str]:
    SEEN.append("session begins")
    yield "session"


class Noting(Middleware):
    def around(self, context: JobContext) -> AbstractContextManager[None]:
        return noting("middleware")(context)


if default_app().is_in_child:
    configure(middleware=[Noting()])


@job(runs_in="process", around=[noting("own")])
def in_child(of: str = depends(session)) -> list[str]:
    """Return what this process has recorded."""
    return [*SEEN]


# --- errors at the start and at the end ---------------------------------------------------------------------------

ERRORS: Final = (ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError)
HANGS: Final = "hangs"
Does = type[BaseException] | str | None


@dataclass(frozen=True)
class Part:
    """A dependency or a context manager: what it does before each `yield`, and at the end."""

    setup: Does = None
    teardown: Does = None
    yields: int = 1

    def plain(self) -> Iterator[str]:
        for _ in range(self.yields):
            _do(self.setup, "setup")
            try:
                yield "value"
            finally:
                _do(self.teardown, "teardown")

    async def asynchronous(self) -> AsyncIterator[str]:
        for _ in range(self.yields):
            await _do_async(self.setup, "setup")
            try:
                yield "value"
            finally:
                await _do_async(self.teardown, "teardown")


def _do(does: Does, where: str) -> None:
    if isinstance(does, type):
        raise does(where)
    if does is HANGS:
        time.sleep(60)


async def _do_async(does: Does, where: str) -> None:
    await asyncio.sleep(60) if does is HANGS else _do(does, where)


PARTS: Final = (
    *(Part(setup=error) for error in (*ERRORS, HANGS)),
    *(Part(teardown=error) for error in (*ERRORS, HANGS)),
    *(Part(error, SystemExit) for error in ERRORS),
    Part(yields=0),
    Part(yields=2),
)
BODIES: Final = (None, KeyError, SystemExit, Discard)
CASES: Final[dict[tuple[str, bool, Part, Does], Any]] = {}


def _declare(kind: str, is_async: bool, part: Part, body: Does) -> Any:
    """Declare a job that raises `body` or returns, within `part`, within another part that fails at its end if `part` fails after it has
    begun."""
    inner: Any = part.asynchronous if is_async else part.plain
    outer = Part(teardown=part.teardown if part.setup else None).plain

    def plain(outer: str = depends(outer), inner: str = depends(inner)) -> str:
        _do(body, "job")
        return "done"

    async def asynchronous(outer: str = depends(outer), inner: str = depends(inner)) -> str:
        return plain("", "")

    def bare() -> str:
        return plain("", "")

    async def bare_async() -> str:
        return plain("", "")

    manager: Any = asynccontextmanager if is_async else contextmanager
    around = [lambda context: contextmanager(outer)(), lambda context: manager(inner)()] if kind == "around" else []
    functions: Any = (bare, bare_async) if around else (plain, asynchronous)
    function = functions[is_async]
    function.__qualname__ = function.__name__  # a child process finds it by the job's name, wherever it is defined
    options: Any = {"timeout": 0.3, "stop_grace": 20} if HANGS in (part.setup, part.teardown) else {}
    return job(name=f"around.case.{len(CASES)}", runs_in="process", max_attempts=1, around=around, **options)(function)


for _kind, _is_async, _part in product(("depends", "around"), (False, True), PARTS):
    for _body in BODIES if _part.teardown in ERRORS and not _part.setup else BODIES[:2] if _part.yields == 2 else BODIES[:1]:
        CASES[_kind, _is_async, _part, _body] = _declare(_kind, _is_async, _part, _body)
