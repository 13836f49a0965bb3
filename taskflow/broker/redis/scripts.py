"""The scripts: read from their files, with the names of fields, statuses, events, words and rules written into them as values."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from taskflow.broker.literals import literals
from taskflow.broker.redis.fields import FIELDS, MARK, SPANS
from taskflow.model.clock import to_microseconds
from taskflow.model.rules import Rules


class Script(NamedTuple):
    """A script's text, and the hash that the server knows it by once it has seen it."""

    name: str
    text: bytes
    sha: bytes


_JOBS: Final = ("base", "names", "jobs")
_TRANSITIONS: Final = ("base", "names", "counts", "wakeups", "jobs", "ready_lists", "transitions", "unreadable")

# What each verb is made of, before its own file.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "enqueue": ("base", "counts", "wakeups", "ready_lists"),
    "add": (*_TRANSITIONS, "adding", "large_payloads"),
    "register": ("base", "session"),
    "claim": ("base", "names", "counts", "ready_lists"),
    "beat": (*_TRANSITIONS, "session", "outlook"),
    "settle": ("base", "names", "counts", "wakeups"),
    "cancel": (*_TRANSITIONS, "session"),
    "read": _JOBS,
    "known": _JOBS,
    "upkeep": (*_TRANSITIONS, "session", "outlook"),
    "arm": _JOBS,
    "console": _TRANSITIONS,
    "workers": ("base", "session"),
    "metrics": ("base", "names"),
    "browse": (*_JOBS, "choose"),
    "purge": (*_TRANSITIONS, "choose"),
    "redo": _TRANSITIONS,
    "pause": ("base",),
    "candidates": ("base",),
    "reindex": (*_TRANSITIONS, "session"),
    "permitted": ("base",),
    "connect": ("base",),
    "sweep": (*_TRANSITIONS, "session"),
}

# What a verb's own file makes, by calling `the_rest()`, only when a job wants it: to make a hundred functions takes the server longer
# than to lease or settle a plain job does.
_REST: Final[Mapping[str, tuple[str, ...]]] = {
    "enqueue": ("names", "large_payloads", "interning"),
    "claim": ("jobs", "session", "leasing"),
    "settle": ("jobs", "ready_lists", "transitions", "adding", "settling"),
}

# Without it the server refuses a script that writes when its memory is full: so are new jobs refused, and nothing else is.
_REFUSED_WHEN_FULL: Final = frozenset({"enqueue", "add"})

_NAME: Final = re.compile(r"\b([FLSEWR])\.(\w+)\b")
_FUNCTION: Final = re.compile(r"^(local function (\w+)\(.*?^end)$", re.MULTILINE | re.DOTALL)
_WORD: Final = re.compile(r"\w+")
_COMMAND: Final = re.compile(r"\b(?:call|in_portions)\('([A-Z]+)'")
_FEWEST: Final[Mapping[int, str]] = {
    0: "INFO PING TIME",
    1: "DEL EXISTS HGETALL HLEN HVALS LLEN MGET PERSIST PTTL SCAN SMEMBERS SUBSCRIBE TYPE UNLINK ZCARD",
    2: "HDEL HEXISTS HGET HMGET HSCAN LINDEX MSET MSETNX PEXPIRE PUBLISH RENAME RPUSH SADD SET SISMEMBER SREM ZMSCORE ZREM ZSCORE",
    3: "GETRANGE HINCRBY HSET HSETNX LRANGE LTRIM ZADD ZRANGE ZRANGEBYSCORE ZREMRANGEBYRANK ZREMRANGEBYSCORE",
}
"""How many arguments each command that the server is told has at least."""

_CALLING: Final = ("EVAL", "EVALSHA")
"""Of these a script's keys are counted before them: three with one key."""

_SENT: Final = (*_CALLING, "SUBSCRIBE", "PING", "SCAN", "INFO", "SET", "MGET", "GETRANGE")


class Scripts(Mapping[str, Script]):
    """The scripts of a store that goes by these rules, by their names. Each is put together when it is first asked for, a millisecond or
    two: all of them would take a worker as long to start as a fifth of its driver's import. What they are made of is read now: by then
    another version may have been installed in its place."""

    def __init__(self, rules: Rules) -> None:
        _sources()
        self._rules = rules
        self._made: dict[str, Script] = {}

    def __getitem__(self, name: str) -> Script:
        script = self._made.get(name)
        if script is None:
            script = self._made[name] = _script(name, _PARTS[name], self._rules)
        return script

    def __iter__(self) -> Iterator[str]:
        return iter(_PARTS)

    def __len__(self) -> int:
        return len(_PARTS)

    def told(self) -> set[str]:
        """All that the server is told to do: by the scripts, and beside them."""
        return {*_SENT, *(name for script in self.values() for name in _COMMAND.findall(script.text.decode()))}


def calls(names: Sequence[str]) -> list[list[str]]:
    """Each command that the server is told as whole as it must be, with some of these names as keys and channels."""
    whole = [[command, *names[:fewest]] for fewest, commands in _FEWEST.items() for command in commands.split()]
    return sorted([*whole, *([command, "", "1", names[0]] for command in _CALLING)])


@cache
def _script(name: str, parts: tuple[str, ...], rules: Rules) -> Script:
    flags = "#!lua" if name in _REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    values = _values(rules)
    body = _NAME.sub(lambda found: values[found[0]], _body(name, parts))
    text = f"{flags}\n{body}".encode()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def _body(name: str, parts: tuple[str, ...]) -> str:
    rest = _REST.get(name, ())
    at_once, ever = _needed((*parts, name)), _needed((*parts, *rest, name))
    lazy = f"local function the_rest()\n{_text_of(parts, ever - at_once)}\n{_text_of(rest, ever)}\nend\n" if rest else ""
    return f"{_text_of(parts, at_once)}\n{lazy}{_text_of([name], at_once)}"


def _text_of(parts: Iterable[str], needed: Container[str]) -> str:
    return "\n".join(piece.text for part in parts for piece in _pieces(part) if piece.function in needed)


class _Piece(NamedTuple):
    """Of a file: a function, or what stands between two, whose `function` is "". `words` are all that are in it."""

    function: str
    text: str
    words: frozenset[str]


def _needed(parts: Iterable[str]) -> set[str]:
    """The functions of these files that are called, far from all of them, and "" for all else: to make a function that nobody calls takes
    the server a quarter of the time of a command."""
    pieces = [piece for part in parts for piece in _pieces(part)]
    calls = {piece.function: piece.words for piece in pieces if piece.function}
    needed, new = {""}, {word for piece in pieces if not piece.function for word in piece.words} & calls.keys()
    while new:
        needed |= new
        new = {word for function in new for word in calls[function]} & calls.keys() - needed
    return needed


@cache
def _sources() -> dict[str, str]:
    """Every file, by its name."""
    folder = Path(__file__).parent  # importlib.resources takes a worker a fiftieth of its start to load
    return {file.stem: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.suffix == ".lua"}


@cache
def _pieces(part: str) -> tuple[_Piece, ...]:
    source = _without_comments(_sources()[part])
    texts = _FUNCTION.split(source)  # text, function, its name, text, ...
    pieces = [("", texts[0])]
    for i in range(1, len(texts), 3):
        pieces += [(texts[i + 1], texts[i]), ("", texts[i + 2])]
    return tuple(_Piece(name, text.strip("\n"), frozenset(map(sys.intern, _WORD.findall(text)))) for name, text in pieces if text.strip())


def _without_comments(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("--"))


@cache
def _values(rules: Rules) -> dict[str, str]:
    """Name to Lua literal."""
    fields = {f"F.{field}": str(number) for number, field in enumerate(FIELDS, 1)}
    spans = {f"L.{name}": ", ".join(map(str, span)) for name, span in SPANS.items()}
    spans["L.mark"] = "'" + "".join(f"\\{byte:03d}" for byte in MARK) + "'"
    own = {"R.session_ttl": str(to_microseconds(rules.session_ttl)), "F.names": ", ".join(map(_text, FIELDS))}
    return fields | spans | own | literals(rules, text=_text, numbers=lambda numbers: f"{{ {', '.join(map(str, numbers))} }}")


def _text(text: str) -> str:
    """A Lua string. Ours are printable ASCII; quotes and backslashes are escaped alike in both languages."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
