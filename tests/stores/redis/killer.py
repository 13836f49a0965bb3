"""A server that ends its clients' connections."""

from __future__ import annotations

import random
import threading
from types import TracebackType
from typing import Final, Self

import redis

from tests.support.servers import RedisServer

_KILLED_EVERY: Final = (0.02, 0.2)


class Killer:
    """Kills all connections of one kind, or one connection of any kind, again and again, from a thread of its own."""

    def __init__(self, server: RedisServer, seed: int) -> None:
        self.killed = 0
        self._server = server
        self._chance = random.Random(seed)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._kill_on, name="killer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _kill_on(self) -> None:
        with self._server.client() as client:
            while not self._is_over.wait(self._chance.uniform(*_KILLED_EVERY)):
                kill = self._chance.choice((self._kill_all, self._kill_listeners, self._kill_one))
                self.killed += int(kill(client))

    def _kill_all(self, client: redis.Redis) -> int:
        return int(client.client_kill_filter(_type="normal", skipme=True)) + self._kill_listeners(client)

    def _kill_listeners(self, client: redis.Redis) -> int:
        return int(client.client_kill_filter(_type="pubsub"))

    def _kill_one(self, client: redis.Redis) -> int:
        mine = client.client_id()
        ids = [int(one["id"]) for one in client.client_list() if int(one["id"]) != mine]
        return int(client.client_kill_filter(_id=str(self._chance.choice(ids)))) if ids else 0
