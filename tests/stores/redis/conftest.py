from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from tests.stores.scene import Scene
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
async def far_scene(server: RedisServer, proxy: Proxy) -> AsyncIterator[Scene]:
    """An application whose every command goes by way of the proxy."""
    async with Scene(server.url, proxy.url()) as scene:
        yield scene


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A broker on the server that all tests share, and a clock."""
    async with World(RedisHarness) as opened:
        yield opened


class Stored:
    """The keys of the world's store on the server, by the ends of their names."""

    def __init__(self, harness: RedisHarness) -> None:
        self.client: redis.Redis = harness.server.client()
        self.prefix = harness.prefix

    def key(self, name: str, of: bytes = b"") -> bytes:
        return self.prefix + name.encode() + of

    def keys(self, begin: bytes) -> list[bytes]:
        return [key for key in self.client.scan_iter(self.key("*"), count=1_000) if key.startswith(begin)]


@pytest.fixture
def stored(world: World) -> Stored:
    assert isinstance(world.harness, RedisHarness)
    return Stored(world.harness)
