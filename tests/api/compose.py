# ruff: noqa: F841  # the blocks stand as they were promised
from __future__ import annotations

from taskflow import Failure, group, job
from tests.api.define import add


@job(name="api.compose.fetch")
async def fetch(url: str) -> bytes:
    return url.encode()


@job(name="api.compose.parse")
async def parse(page: bytes) -> list[str]:
    return page.decode().split("/")


@job(name="api.compose.store")
async def store(parts: list[str], bucket: str) -> int:
    return len(parts)


@job(name="api.compose.notify")
async def notify(url: str) -> None: ...


@job(name="api.compose.summed")
async def summed(xs: list[int]) -> int:
    return sum(xs)


@job(name="api.compose.tally")
async def tally(xs: list[int | Failure]) -> int:
    return len(xs)


# fmt: off
async def block_8_1(url: str) -> None:
    # block 8.1
    flow = fetch.bind(url) | parse | store.partial("bucket")             # Flow[int]: each result is the next one's first argument
    then = flow | notify.bind(url)                                       # a bound call ignores the result: it only waits for it
    total = group(add.bind(n, n) for n in range(10_000)) | summed        # summed(xs: list[int]); runs once, when all have succeeded
    safe = group((add.bind(n, n) for n in range(9)), failures="collect") | tally   # tally(xs: list[int | Failure]), in the calls' order
    handle = await total.delay()                                        # FlowHandle[int]
    print(await handle.result())
    await handle.flow.cancel()                                          # all of it; .flow is there on handles of flows
    # end of block
