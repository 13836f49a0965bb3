"""Operators' actions, as stored in the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from taskflow.model.clock import instant_of
from taskflow.model.stored_values import FieldReader, instant, octets, packed, text, unpacked, whole

MAX_NAMES: Final = 10
MAX_CHARACTERS: Final = 200
MAX_REASON: Final = 1_000


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's action.

    `id`        16 bytes that let a store recognize a resent action
    `by`        the operator, as "user@host" by default
    `kind`      "send", "retry", "run-now", "cancel", "purge", "pause", "resume"; for jobs "jobs.pause" and
                "jobs.resume"; for schedules "schedules.pause" and so on
    `names`     the jobs, queues or schedules that were named; the log keeps the first `MAX_NAMES`
    `named`     how many were named in all
    `which`     the selection, if none were named: {"queue": "mail", "status": "failed"}
    `affected`  how many jobs, queues or schedules it changed, including running jobs that were asked to stop
    `stopped`   why the action stopped early; empty if it didn't. If it did, more than `affected` may have changed
    `reason`    the operator's reason
    """

    id: bytes
    by: str
    kind: str
    names: tuple[str, ...] = ()
    named: int = 0
    which: Mapping[str, str] = {}
    affected: int = 0
    stopped: str = ""
    reason: str = ""


class ActionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An action in a store's audit log. `number` rises with each action. `at` is the store's time. The `id` of `action` is empty."""

    number: int
    at: datetime
    action: Action


def pack_action(action: Action) -> bytes:
    """Pack an action without its id. Long texts are truncated, so that no entry becomes large."""
    names = [name[:MAX_CHARACTERS] for name in action.names[:MAX_NAMES]]
    which = {name: value[:MAX_CHARACTERS] for name, value in action.which.items()}
    texts = [value[:MAX_CHARACTERS] for value in (action.by, action.kind, action.stopped)]
    return packed([*texts, action.reason[:MAX_REASON], names, action.named, which, action.affected])


def action_record_of(number: Any, at: Any, body: Any) -> ActionRecord:
    """Return the record of a stored action. Unreadable fields get defaults."""
    reader = FieldReader()
    unreadable = Action(id=b"", by="?", kind="?", reason="this entry cannot be read")
    return ActionRecord(
        number=reader.read("number", number, whole, 0),
        at=reader.read("at", at, instant, instant_of(0)),
        action=reader.read("body", body, _action, unreadable),
    )


def _action(stored: Any) -> Action:
    by, kind, stopped, reason, names, named, which, affected, *_ = unpacked(octets(stored))
    return Action(
        id=b"",
        by=text(by),
        kind=text(kind),
        stopped=text(stopped),
        reason=text(reason),
        names=tuple(map(text, names)),
        named=whole(named),
        which={text(name): text(value) for name, value in which.items()},
        affected=whole(affected),
    )
