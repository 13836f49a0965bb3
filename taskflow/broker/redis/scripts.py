"""Assembles the Lua scripts from sections of the Lua files in this folder.

A line ``-- === part NAME ===`` or ``-- === script NAME ===`` in a Lua file begins a section. A script consists of the parts that `_PARTS`
lists, and its own section. Names of fields, layout positions, statuses, events, words and rules (F.x, L.x, S.x, E.x, W.x, R.x) are
replaced by their values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from taskflow.broker.literals import literals
from taskflow.broker.redis.fields import AS_SENT, FIELDS, MARK, SPANS
from taskflow.model.failure_cause import FINGERPRINT_BYTES, MOST_BYTES, POISON, UNKNOWN
from taskflow.model.job_schema import BY_NAME, CLAIMED, FOLLOWED_UP, OUTCOME, REDO, TAGGED, cleared_by
from taskflow.model.rules import Rules


class Script(NamedTuple):
    """A script's text, and the SHA-1 hash with which the server can run it once it has received the text."""

    text: bytes
    sha: bytes


_NAMES: Final = ("names", "texts_of")
_QUEUES: Final = ("is_before", "push", "peek")
_COUNTS: Final = ("change_count", "counts")
_WAKEUPS: Final = ("nudge", "wake_listeners", "publish_ends")
_CHANGE_JOBS: Final = ("large_payloads", "read_jobs", "write_jobs", "indexes", "tags", "transitions")
_SCHEDULES: Final = ("sessions", "schedule")
_FIRE: Final = ("add_all", *_SCHEDULES, "fire_all")
_TRANSITIONS: Final = ("base", *_NAMES, "intern", *_COUNTS, *_QUEUES, *_WAKEUPS, *_CHANGE_JOBS)

_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "permitted": ("base",),
    "layout": ("base",),
    "enqueue": ("base", "change_count", "is_before", "push"),
    "add": (*_TRANSITIONS, "add_all"),
    "known": ("base", "large_payloads", "read_jobs"),
    "claim": ("base", *_NAMES, *_COUNTS, "is_before", "peek"),
    "settle": ("base", "names", *_COUNTS, "publish_ends", "results"),
    "register": ("base", "sessions"),
    "beat": (*_TRANSITIONS, *_SCHEDULES, "drop_declarations", "kill_session", "leases", "end_dead_leases", "due_in", "check_indexes"),
    "upkeep": (
        *_TRANSITIONS,
        "unreadable",
        *_SCHEDULES,
        "offers",
        "drop_declarations",
        "kill_session",
        "leases",
        "end_dead_leases",
        "due_in",
        "check_indexes",
        "listeners",
    ),
    "reindex": (*_TRANSITIONS, "unreadable", *_SCHEDULES, "drop_declarations", "kill_session"),
    "define": ("base", "nudge", *_SCHEDULES),
    "fire": (*_TRANSITIONS, *_FIRE),
    "advance": (*_TRANSITIONS, *_FIRE),
    "arm": ("base", "read_jobs", "nudge", "listeners", "await_end"),
    "read": ("base", *_NAMES, "read_jobs", "await_end"),
    "holders": _TRANSITIONS,
    "cancel": _TRANSITIONS,
    "queues": ("base", "read_jobs", "is_before", "peek"),
    "workers": ("base", "sessions"),
    "schedules": ("base", "nudge", *_SCHEDULES),
    "amend_schedule": ("base", "nudge", *_SCHEDULES),
    "metrics": ("base", *_NAMES),
    "page": ("base", *_NAMES, "read_jobs", "is_before", "peek", "matching", "index_readers"),
    "candidates": ("base", *_NAMES, "read_jobs", "is_before", "peek", "index_readers"),
    "failure_parts": ("base", *_NAMES),
    "failure_cells": ("base",),
    "purge": (*_TRANSITIONS, "unreadable", "matching"),
    "drop": (*_TRANSITIONS, "unreadable"),
    "redo": (*_TRANSITIONS, "unreadable"),
    "pause": ("base", "nudge"),
    "record_act": ("base",),
    "acts": ("base",),
    "sweep": ("base", "read_jobs", "is_before", "peek"),
}
"""The parts of each script, in order."""

# The server creates a part's functions again in each call, and creating all of them takes longer than processing a plain job. So the parts
# that only some jobs need are created by `load_rest()`, which the script calls for such a job.
_REST: Final[Mapping[str, tuple[str, ...]]] = {
    "enqueue": (*_NAMES, "intern", "large_payloads", "nudge", "enqueue_rest"),
    "claim": ("large_payloads", "read_jobs", "leases", "nudge", "claim_others"),
    "settle": ("texts_of", "intern", *_QUEUES, "nudge", "wake_listeners", *_CHANGE_JOBS, "add_all", "settle_others"),
}

# When its memory is full, the server refuses scripts without the flag allow-oom. So it refuses new jobs, but everything else still works.
_REFUSED_WHEN_FULL: Final = frozenset({"enqueue", "add", "fire"})

_SECTION: Final = re.compile(r"^-- === (?:part|script) (\w+) =*\n", re.MULTILINE)
_NAME: Final = re.compile(r"\b([FLSEWR])\.(\w+)\b")
_ARGUMENTS_NEEDED: Final[Mapping[int, str]] = {
    0: "INFO PING TIME",
    1: "DEL EXISTS HGETALL HKEYS HLEN HVALS LLEN MGET PERSIST PTTL SCAN SMEMBERS SUBSCRIBE TYPE UNLINK ZCARD ZPOPMAX",
    2: "HDEL HEXISTS HGET HMGET HSCAN LINDEX MSET MSETNX PEXPIRE PUBLISH RENAME RPUSH SADD SET SISMEMBER SREM ZREM ZSCORE",
    3: "GETRANGE HINCRBY HSET HSETNX LRANGE LTRIM ZADD ZCOUNT ZRANGE ZRANGEBYSCORE ZREMRANGEBYRANK ZREMRANGEBYSCORE",
}
"""Every command that taskflow sends, grouped by its minimum number of arguments."""

_RUN_SCRIPT: Final = ("EVAL", "EVALSHA")
"""Commands that run a script. With one key they need three arguments, because the number of keys precedes the key."""


class Scripts(Mapping[str, Script]):
    """Maps names to scripts, for a store with the given rules.

    Each script is assembled on first use, which takes a millisecond or two. Assembling them all up front would delay a worker's start
    by about a fifth of the driver's import time. The files are read when this object is created, before an upgrade can replace them.
    """

    def __init__(self, rules: Rules) -> None:
        _sections()
        self._rules = rules
        self._made: dict[str, Script] = {}

    def __getitem__(self, name: str) -> Script:
        script = self._made.get(name)
        if script is None:
            script = self._made[name] = _script(name, self._rules)
        return script

    def __iter__(self) -> Iterator[str]:
        return iter(_PARTS)

    def __len__(self) -> int:
        return len(_PARTS)


def smallest_calls(names: Sequence[str]) -> list[list[str]]:
    """Return every command with as few arguments as possible, for ACL checks. `names` serve as its keys and channels."""
    whole = [[command, *names[:needed]] for needed, commands in _ARGUMENTS_NEEDED.items() for command in commands.split()]
    return sorted([*whole, *([command, "", "1", names[0]] for command in _RUN_SCRIPT)])


@cache
def _script(name: str, rules: Rules) -> Script:
    flags = "#!lua" if name in _REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    values = _values(rules)
    rest = _text_of(_REST.get(name, ()))
    lazy = f"local function load_rest()\n{rest}\nend\n" if rest else ""
    body = f"{_text_of(_PARTS[name])}\n{lazy}{_text_of([name])}"
    text = f"{flags}\n{_NAME.sub(lambda found: values[found[0]], body)}".encode()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def _text_of(sections: Iterable[str]) -> str:
    return "\n".join(_sections()[section] for section in sections)


@cache
def _sections() -> dict[str, str]:
    """Return the sections of all Lua files by name, with comments removed."""
    found: dict[str, str] = {}
    for file in Path(__file__).parent.glob("*.lua"):  # loading importlib.resources would take a fiftieth of a worker's start
        _, *parts = _SECTION.split(file.read_text(encoding="utf-8"))
        found |= zip(parts[::2], map(_without_comments, parts[1::2]), strict=True)
    return found


def _without_comments(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("--"))


@cache
def _values(rules: Rules) -> dict[str, str]:
    """Return the Lua literal for each name that a script may contain."""
    fields = {f"F.{field}": str(number) for number, field in enumerate(FIELDS, 1)}
    spans = {f"L.{name}": ", ".join(map(str, span)) for name, span in SPANS.items()}
    spans["L.mark"] = _bytes(MARK)
    own = {"F.names": ", ".join(map(_text, FIELDS)), "F.last": str(len(FIELDS))}
    own["F.strings"] = ", ".join(f"[{number}] = true" for number, field in enumerate(FIELDS, 1) if BY_NAME[field].kind.type is not int)
    for name, head in (("tagged", TAGGED), ("followed_up", FOLLOWED_UP)):
        own[f"F.{name}"] = _bytes(head)
    own |= {f"F.{name}": _bytes(value) for name, value in (("unknown", UNKNOWN), ("poison", POISON))}
    own["F.most_deploy"] = str(MOST_BYTES - FINGERPRINT_BYTES)
    own["F.as_sent"] = _numbers(AS_SENT)
    own |= {f"F.cleared_by_{move}": _numbers(cleared_by(move)) for move in (CLAIMED, OUTCOME, REDO)}
    return fields | spans | own | literals(rules, text=_text, numbers=lambda numbers: f"{{ {', '.join(map(str, numbers))} }}")


def _numbers(fields: Iterable[str]) -> str:
    return ", ".join(str(FIELDS.index(field) + 1) for field in fields)


def _bytes(value: bytes) -> str:
    return "'" + "".join(f"\\{byte:03d}" for byte in value) + "'"


def _text(text: str) -> str:
    """Return a Lua string literal. The text is printable ASCII, in which Lua escapes quotes and backslashes as Python does."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
