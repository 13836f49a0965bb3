"""Assembles the Lua scripts from sections of the Lua files in this folder.

A line ``-- === part NAME ===`` or ``-- === script NAME ===`` in a Lua file begins a section. A script consists of the parts that `PARTS`
lists, and its own section. Names of fields, kinds, flags, events, words and rules (F.x, K.x, G.x, L.x, E.x, W.x, R.x) are replaced by their
values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from taskflow.broker.literals import literals
from taskflow.broker.redis import layout
from taskflow.model.clock import to_microseconds
from taskflow.model.rules import Rules


class Script(NamedTuple):
    """A script's text, and the SHA-1 hash with which the server can run it once it has received the text."""

    text: bytes
    sha: bytes


_ENDS: Final = ("has_missing", "publish_ends")
_CHANGES: Final = ("counts", "write_counts", "nudge", "push", "records", "places", "changes")
_ALL: Final = ("base", "change_count", "is_less", *_ENDS, *_CHANGES)
_QUERY: Final = ("is_entry_of", "run_query")

PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "permitted": ("base",),
    "query": ("base", "is_less", "records", *_QUERY, "nudge", "listeners"),
    "apply": (*_ALL, *_QUERY, "apply_steps", "run_apply"),
    "grow": (*_ALL, *_QUERY, "apply_steps", "run_apply"),
    "add": ("base", "has_missing", "change_count", "is_less", "push", "nudge"),
    "claim": ("base", "change_count", "is_less", "peek", "nudge", "listeners"),
    "succeed": ("base", *_ENDS),
    "hand_over": _ALL,
    "promote": _ALL,
    "fade": _ALL,
    "aside": _ALL,
    "compare": (*_ALL, *_QUERY, "compare_records"),
    "arm": ("base", "listeners"),
}
"""The parts of each script, in order."""

# The server creates a part's functions again in each call, and creating all of them takes longer than processing a plain job. So the parts
# that only some jobs need are created by `load_rest()`, which the script calls for such a job.
_REST: Final[Mapping[str, tuple[str, ...]]] = {
    "claim": ("records", "places", "claim_others"),
    "succeed": ("change_count", "is_less", *_CHANGES, "succeed_others"),
}

# When its memory is full, the server refuses scripts without the flag allow-oom. So it refuses new jobs, but everything else still works.
_REFUSED_WHEN_FULL: Final = frozenset({"add", "grow"})

_SECTION: Final = re.compile(r"^-- === (?:part|script) (\w+) =*\n", re.MULTILINE)
_NAME: Final = re.compile(r"\b([FGKLEWR])\.(\w+)\b")
_ARGUMENTS_NEEDED: Final[Mapping[int, str]] = {
    0: "INFO PING TIME",
    1: "DEL EXISTS HGETALL LLEN MGET PERSIST SCAN SUBSCRIBE UNLINK ZCARD ZPOPMAX",
    2: "EXPIRE HDEL HGET HMGET LINDEX MSET MSETNX PUBLISH RPUSH SET ZREM ZSCORE",
    3: "GETRANGE HINCRBY HSET HSETNX LRANGE LTRIM ZADD ZINCRBY ZLEXCOUNT ZRANGE ZRANGEBYSCORE ZREMRANGEBYRANK ZREMRANGEBYSCORE",
}
"""Every command that taskflow sends, grouped by its minimum number of arguments."""

_RUN_SCRIPT: Final = ("EVAL", "EVALSHA")
"""Commands that run a script. With one key they need three arguments, because the number of keys precedes the key."""


class Scripts(dict[str, Script]):
    """Maps names to scripts, for a store with the given rules.

    Each script is assembled on first use, which takes a millisecond or two. The files are read when this object is created, before an
    upgrade can replace them.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        _sections()
        self._rules = rules

    def __missing__(self, name: str) -> Script:
        script = self[name] = _script(name, self._rules)
        return script


def smallest_calls(names: Sequence[str]) -> list[list[str]]:
    """Return every command with as few arguments as possible, for ACL checks. `names` serve as keys and channels."""
    whole = [[command, *names[:needed]] for needed, commands in _ARGUMENTS_NEEDED.items() for command in commands.split()]
    return sorted([*whole, *([command, "", "1", names[0]] for command in _RUN_SCRIPT)])


@cache
def _script(name: str, rules: Rules) -> Script:
    flags = "#!lua" if name in _REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    values = _values(rules)
    rest = _text_of(_REST.get(name, ()))
    lazy = f"local function load_rest(rev, session, unreadable)\n{rest}\nend\n" if rest else ""
    body = f"{_text_of(PARTS[name])}\n{lazy}{_text_of([name] if name in _sections() else [])}"
    text = f"{flags}\n{_NAME.sub(lambda found: values[found[0]], body)}".encode()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def _text_of(sections: Iterable[str]) -> str:
    return "\n".join(_sections()[section] for section in sections)


@cache
def _sections() -> dict[str, str]:
    """Return the sections of all Lua files by name, with comments removed."""
    found: dict[str, str] = {}
    for file in Path(__file__).parent.glob("*.lua"):  # loading importlib.resources would take 2 % of a worker's start
        _, *parts = _SECTION.split(file.read_text(encoding="utf-8"))
        found |= zip(parts[::2], map(_without_comments, parts[1::2]), strict=True)
    return found


def _without_comments(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("--"))


@cache
def _values(rules: Rules) -> dict[str, str]:
    """Return the Lua literal for each name that a script may contain."""
    found = literals(_text) | layout.literals() | {"R.keep_failed": str(to_microseconds(rules.keep_failed))}
    return {name: _NAME.sub(lambda inner: found[inner[0]], value) if name == "L.places" else value for name, value in found.items()}


def _text(text: str) -> str:
    """Return a Lua string literal. The text is printable ASCII, in which Lua escapes quotes and backslashes as Python does."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
