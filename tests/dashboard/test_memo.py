"""The results of slow reads in a large store are cached for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskflow.broker.engine.broker import EngineAdmin
from taskflow.dashboard import memo
from tests.dashboard.site import Site
from tests.support.verdicts import failed
from tests.support.world import World


async def test_a_slow_read_is_kept_until_it_is_forgotten(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SLOW", 0.01)
    read = list[str]()

    async def slowly(name: str, seconds: float = 0.02) -> int:
        read.append(name)
        await asyncio.sleep(seconds)
        return len(read)

    assert [await memo.remembered("a", lambda: slowly("a")) for _ in range(3)] == [1, 1, 1]
    assert await memo.remembered("b", lambda: slowly("b")) == 2
    assert [await memo.remembered("quick", lambda: slowly("quick", 0)) for _ in range(2)] == [3, 4]
    memo.forget()
    assert await memo.remembered("a", lambda: slowly("a")) == 5
    await asyncio.sleep(memo.TIMES * 0.03)
    assert await memo.remembered("a", lambda: slowly("a"), keep=60.0) == 6
    await asyncio.sleep(memo.TIMES * 0.03)
    assert await memo.remembered("a", lambda: slowly("a")) == 6


async def test_a_slow_read_that_fails_is_not_kept(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SLOW", 0.0)

    async def fails() -> int:
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        await memo.remembered("a", fails)
    assert await memo.remembered("a", lambda: asyncio.sleep(0.001, 7)) == 7


async def test_a_user_who_acts_sees_the_change_at_once(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SLOW", 0.0)
    for _ in range(2):
        await memory.settle(failed(await memory.running()))
    groups: Any = [link for link in (await site.get("/failures")).links if "act?" in link]
    await site.get(groups[0])
    await site.post("/act", action="retry", group=groups[0].partition("group=")[2].partition("&")[0], first="1")
    assert "1 builtins.ValueError: no such user" in (await site.get("/failures")).text


async def test_pages_made_together_count_failures_once(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The overview, the failures and the preview of an action share the counts, which need thousands of reads in a large store."""
    monkeypatch.setattr(memo, "SLOW", 0.0)
    await memory.settle(failed(await memory.running()))
    counted = list[Any]()
    original = EngineAdmin.failure_groups

    async def count(admin: EngineAdmin, **given: Any) -> Any:
        counted.append(given["queue"])
        return await original(admin, **given)

    monkeypatch.setattr(EngineAdmin, "failure_groups", count)
    for path in ("/", "/failures", "/act?action=retry&status=failed"):
        assert "no such user" in (page := await site.get(path)).text or "1 job" in page.text
    await site.get("/failures?queue=default")
    assert counted == [None, "default"]
