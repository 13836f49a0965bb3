"""Caches the results of slow reads, so that reads of one kind take only a small share of the time, even from a large store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from starlette.requests import Request

from taskflow.app.app import default_app
from taskflow.app.loop_client import LoopClient

T = TypeVar("T")

SLOW: Final = 0.02  # seconds: faster reads aren't cached
TIMES: Final = 20  # a result is cached for at least this many times as long as the read took
MAX_KEPT: Final = 200  # maximum number of cached results

SEEN: Final = "taskflow.seen"  # the scope key of a script's request that holds the results of the store's newest check, by function

_memos: Final = WeakKeyDictionary[LoopClient, dict[Hashable, tuple[float, Any]]]()


async def remembered(key: Hashable, read: Callable[[], Awaitable[T]], *, keep: float = 0.0) -> T:
    """Return the result cached under this key, or else call `read`. The result of a slow read is cached for `keep` seconds or longer,
    unless `forget` is called."""
    memo, clock = _memos.setdefault(default_app().client(), {}), asyncio.get_running_loop().time
    began = clock()
    if key in memo and began < memo[key][0]:
        found: T = memo[key][1]
        return found
    result = await read()
    took = clock() - began
    for old in [each for each, (until, _) in memo.items() if until < clock() or len(memo) >= MAX_KEPT]:
        del memo[old]
    if took > SLOW:
        memo[key] = clock() + max(keep, TIMES * took), result
    return result


async def seen(request: Request, read: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `read`. If the request follows a check of the store that called `read`, return the check's result instead."""
    found: dict[Callable[[], Awaitable[Any]], T] = request.scope.get(SEEN, {})
    return found[read] if read in found else await read()


def forget() -> None:
    """Clear the cache, because a user has changed something through the dashboard."""
    _memos.pop(default_app().client(), None)
