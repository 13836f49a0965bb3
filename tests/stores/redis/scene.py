"""The scene of every store on a Redis server, and which operation a command on the wire is."""

from __future__ import annotations

import random
import re
import threading
from types import TracebackType
from typing import Final, Self

import redis

from taskflow.broker.redis.scripts import PARTS, Scripts
from taskflow.model.rules import Rules
from tests.stores import scene
from tests.support.proxy import Command
from tests.support.servers import RedisServer


class Scene(scene.Scene):
    def __init__(self, server: RedisServer, url: str | None = None) -> None:
        super().__init__(server.url, url)
        self.server = server


_COMMAND: Final = re.compile(r"\b(?:call|in_portions)\('([A-Z]+)'")
_SENT: Final = ("EVAL", "EVALSHA", "SUBSCRIBE", "PING", "SCAN", "INFO", "SET", "GETRANGE", "ZRANGE", "HGET", "HSETNX")


def commands() -> set[str]:
    """Return the name of every command that taskflow sends, from a script or directly."""
    return {*_SENT, *(name for script in map(Scripts(Rules()).__getitem__, PARTS) for name in _COMMAND.findall(script.text.decode()))}


def _verbs() -> dict[bytes, str]:
    """By what a client sends: the script's hash, or its text."""
    return {sent: name for name in PARTS for sent in Scripts(Rules())[name]}


_VERBS: Final = _verbs()


def verb_of(command: Command) -> str:
    """The script that it runs, or its own name: "claim", "PING"."""
    is_script = command.name in (b"EVALSHA", b"EVAL")
    return _VERBS.get(command.args[0], "another script") if is_script else command.name.decode()


_KILLED_INTERVAL: Final = (0.02, 0.2)


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
            while not self._is_over.wait(self._chance.uniform(*_KILLED_INTERVAL)):
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
