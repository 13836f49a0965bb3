from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from tests.stores.redis.scene import Scene
from tests.support.harnesses import RedisHarness
from tests.support.proxy import Proxy
from tests.support.servers import HOST, RedisServer
from tests.support.world import World


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(HOST, server.port) as proxy:
        yield proxy


@pytest.fixture
async def scene(server: RedisServer) -> AsyncIterator[Scene]:
    """An application straight on the server."""
    async with Scene(server) as scene:
        yield scene


@pytest.fixture
async def far_scene(server: RedisServer, proxy: Proxy) -> AsyncIterator[Scene]:
    """An application whose every command goes by way of the proxy."""
    async with Scene(server, proxy.url()) as scene:
        yield scene


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A broker on the server that all tests share, and a clock."""
    async with World(RedisHarness) as opened:
        yield opened


@pytest.fixture
def client(world: World) -> redis.Redis:
    """Of the server that the world is on."""
    assert isinstance(world.harness, RedisHarness)
    return world.harness.server.client()
