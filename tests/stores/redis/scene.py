"""The scene of every store on a Redis server, and which verb a command on the wire is."""

from __future__ import annotations

import re
from typing import Final

from taskflow.broker.redis.scripts import Scripts
from taskflow.model.rules import Rules
from tests.stores import scene
from tests.support.proxy import Command
from tests.support.servers import RedisServer


class Scene(scene.Scene):
    def __init__(self, server: RedisServer, url: str | None = None) -> None:
        super().__init__(server.url, url)
        self.server = server


_COMMAND: Final = re.compile(r"\b(?:call|in_portions)\('([A-Z]+)'")
_SENT: Final = ("EVAL", "EVALSHA", "SUBSCRIBE", "PING", "SCAN", "INFO", "SET", "MGET", "GETRANGE", "ZRANGE")


def commands() -> set[str]:
    """Return the name of every command that taskflow sends, from a script or directly."""
    return {*_SENT, *(name for script in Scripts(Rules()).values() for name in _COMMAND.findall(script.text.decode()))}


def _verbs() -> dict[bytes, str]:
    """By what a client sends: the script's hash, or its text."""
    return {sent: name for name, script in Scripts(Rules()).items() for sent in script}


_VERBS: Final = _verbs()


def verb_of(command: Command) -> str:
    """The script that it runs, or its own name: "claim", "PING"."""
    is_script = command.name in (b"EVALSHA", b"EVAL")
    return _VERBS.get(command.args[0], "another script") if is_script else command.name.decode()
