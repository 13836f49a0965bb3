"""Context managers that note when they begin and end, and a job that runs in a child process inside one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager

from taskflow import JobContext, Middleware, configure, depends, job
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
    """Return what this process has seen."""
    return [*SEEN]
