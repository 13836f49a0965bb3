"""Which commands taskflow sends to a Redis server, and which operation a command on the wire is."""

from __future__ import annotations

import re
from typing import Final

from taskflow.broker.redis.scripts import PARTS, Scripts
from taskflow.model.rules import Rules
from tests.support.proxy import Command

SCRIPTS: Final = Scripts(Rules())

_COMMAND: Final = re.compile(r"\b(?:call|in_portions)\('([A-Z]+)'")
_SENT: Final = ("EVAL", "EVALSHA", "SUBSCRIBE", "PING", "SCAN", "INFO", "SET", "GETRANGE", "ZRANGE", "HGET", "HSETNX")


def commands() -> set[str]:
    """Return the name of every command that taskflow sends, from a script or directly."""
    return {*_SENT, *(name for part in PARTS for name in _COMMAND.findall(SCRIPTS[part].text.decode()))}


_VERBS: Final = {sent: name for name in PARTS for sent in SCRIPTS[name]}
"""The operations by what a client sends: the script's hash, or its text."""


def verb_of(command: Command) -> str:
    """Return the script that a command runs, or the command's own name: "claim", "PING"."""
    is_script = command.name in (b"EVALSHA", b"EVAL")
    return _VERBS.get(command.args[0], "another script") if is_script else command.name.decode()
