# ruff: noqa: E501  # the blocks stand as they were promised
from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from taskflow import Worker, worker_lifespan
from tests.api.define import add


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"name": "the application's own"}


async def sums(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(await (await add.delay(1, 2)).result(timeout=30)))


routes = [Route("/", sums)]


# fmt: off
async def block_6_1(serve: Callable[[], Awaitable[None]]) -> None:
    # block 6.1
    async with Worker(concurrency=50):                                  # inside an application: works until the block ends, then winds down
        await serve()
    # end of block


# block 6.2
app = Starlette(routes=routes, lifespan=worker_lifespan(own=lifespan, concurrency=50))      # the same; wraps the application's own lifespan; FastAPI likewise
# end of block
