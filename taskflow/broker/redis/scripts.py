"""The scripts: read from their files, with the names of fields, statuses, events, words and rules written into them as values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from taskflow.broker.literals import literals
from taskflow.broker.redis.fields import FIELDS, SPANS
from taskflow.model.rules import Rules


class Script(NamedTuple):
    """A script's text, and the hash that the server knows it by once it has seen it."""

    name: str
    text: bytes
    sha: bytes


_JOBS: Final = ("base", "names", "jobs")
_SHELF: Final = ("base", "names", "counts", "nudges", "jobs", "ordered", "shelf")

# What each verb is made of, before its own file.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "enqueue": ("base", "names", "counts", "nudges", "ordered"),
    "add": (*_SHELF, "adding"),
    "register": ("base", "living"),
    "claim": ("base", "names", "counts", "ordered"),
    "beat": (*_SHELF, "living"),
    "settle": ("base", "names", "counts", "nudges"),
    "cancel": (*_SHELF, "living"),
    "read": _JOBS,
    "known": _JOBS,
    "upkeep": (*_SHELF, "living"),
    "arm": _JOBS,
    "queues": _SHELF,
    "workers": ("base", "living"),
    "metrics": ("base", "names"),
    "browse": (*_JOBS, "choose"),
    "purge": (*_SHELF, "choose"),
    "redo": _SHELF,
    "pause": ("base",),
    "candidates": ("base",),
    "reindex": (*_SHELF, "living"),
    "permitted": ("base",),
    "layout": ("base",),
}

# What a verb's own file makes, by calling `the_rest()`, only when a job wants it: to make a hundred functions takes the server longer
# than to lease or settle a plain job does.
_REST: Final[Mapping[str, tuple[str, ...]]] = {
    "claim": ("jobs", "living", "leasing"),
    "settle": ("jobs", "ordered", "shelf", "adding", "settling"),
}

# Without it the server refuses a script that writes when its memory is full: so are new jobs refused, and nothing else is.
_REFUSED_WHEN_FULL: Final = frozenset({"enqueue", "add"})

_NAME: Final = re.compile(r"\b([FLSEWR])\.(\w+)\b")
_COMMAND: Final = re.compile(r"\b(?:call|in_portions)\('([A-Z]+)'")
_FEWEST: Final[Mapping[int, str]] = {
    0: "INFO PING TIME",
    1: "DEL EXISTS HGETALL HLEN HVALS MGET PTTL SCAN SMEMBERS SUBSCRIBE TYPE UNLINK ZCARD",
    2: "HDEL HEXISTS HGET HMGET LINDEX MSET MSETNX PEXPIRE PUBLISH RENAME RPUSH SADD SET SISMEMBER SREM ZMSCORE ZREM ZSCORE",
    3: "HINCRBY HSET HSETNX LRANGE LTRIM ZADD ZRANGE ZRANGEBYSCORE ZREMRANGEBYRANK ZREMRANGEBYSCORE",
}
"""How many arguments a command has at least. A script, whose keys are counted before them, has three with one key."""

_SENT: Final = ("EVALSHA", "EVAL", "SUBSCRIBE", "PING", "SCAN", "INFO")


class Scripts:
    """The scripts of a store that goes by these rules."""

    def __init__(self, rules: Rules) -> None:
        values = _values(rules)
        self._by_name = {name: _script(name, parts, values) for name, parts in _PARTS.items()}

    def __getitem__(self, name: str) -> Script:
        return self._by_name[name]

    def commands(self) -> list[str]:
        """All that the server is told to do: by the scripts, and beside them."""
        return sorted({*_SENT, *(name for script in self._by_name.values() for name in _COMMAND.findall(script.text.decode()))})

    def calls(self, names: Sequence[str]) -> list[list[str]]:
        """Each command as whole as it must be, with some of these names as keys and channels."""
        fewest = {command: number for number, commands in _FEWEST.items() for command in commands.split()}
        return [
            [command, "", "1", names[0]] if command in ("EVAL", "EVALSHA") else [command, *names[: fewest[command]]]
            for command in self.commands()
        ]


def _script(name: str, parts: tuple[str, ...], values: Mapping[str, str]) -> Script:
    flags = "#!lua" if name in _REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    rest = _text_of(_REST[name]) if name in _REST else ""
    body = "\n".join([_text_of(parts), f"local function the_rest()\n{rest}\nend" if rest else "", _text_of([name])])
    text = f"{flags}\n{_NAME.sub(lambda found: values[found[0]], body)}".encode()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def _text_of(parts: Iterable[str]) -> str:
    return "\n".join(_without_comments(_source(part)) for part in parts)


@cache
def _source(name: str) -> str:
    return (resources.files("taskflow.broker.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _without_comments(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("--"))


def _values(rules: Rules) -> dict[str, str]:
    """Name to Lua literal."""
    fields = {f"F.{field}": str(number) for number, field in enumerate(FIELDS, 1)}
    spans = {f"L.{name}": ", ".join(map(str, span)) for name, span in SPANS.items()}
    return fields | spans | literals(rules, text=_text, numbers=lambda numbers: f"{{ {', '.join(map(str, numbers))} }}")


def _text(text: str) -> str:
    """A Lua string. Ours are printable ASCII; quotes and backslashes are escaped alike in both languages."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
