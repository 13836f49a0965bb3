"""What every row of `jobs` and `sessions` must satisfy, so that no verb fails on it. The SQL has these texts as P.UNSOUND and the like.

Somebody else may have written any value that the column's type admits. An index finds the jobs that are not sound: where all are, a look at
it costs one step. `mending.sql` gives them values that verbs can work with, and notes what stood there: such a job is not run.
"""

from __future__ import annotations

from typing import Final

from taskflow.broker.literals import GONE
from taskflow.model.clock import to_microseconds
from taskflow.model.record import CODES, Status
from taskflow.model.rules import LONGEST
from taskflow.model.stored import LATEST

MOST_BYTES: Final = 1 << 20
"""Of a small stored value. More of it is not fetched."""

MOST_PAYLOAD_BYTES: Final = 1 << 26
"""Of a payload or a result."""

MOST_JOINS: Final = 16_384
"""Jobs that one job's end may release."""

_RUNNING, _SUCCEEDED, _HELD = (CODES[status] for status in (Status.RUNNING, Status.SUCCEEDED, Status.HELD))
_MOST_COUNT: Final = (1 << 31) - 2
"""One less than the column holds: a verb adds one."""


_NOTHING_IS_KEPT: Final = "payload IS NULL AND result IS NULL AND errors IS NULL AND extras IS NULL AND reason IS NULL"


def _time(column: str) -> str:
    return f"{column} BETWEEN 0 AND {LATEST}"


def _count(column: str) -> str:
    return f"{column} BETWEEN 0 AND {_MOST_COUNT}"


def _if_any(condition: str) -> str:
    return f"({condition}) IS NOT FALSE"


def _bytes(column: str) -> str:
    return f"encode(substr({column}, 1, 256), 'hex')"


def _words(column: str) -> str:
    return f"translate(left({column}, 100), E'\\n\\t', '  ')"


def _beside_status(shown: str) -> str:
    return f"concat(coalesce({shown}, 'NULL'), ' with status ', status)"


JOBS: Final[dict[str, tuple[str, str]]] = {
    "id": ("octet_length(id) = 16", _bytes("id")),
    "status": (f"status BETWEEN 0 AND {GONE - 1} OR status = {GONE} AND {_NOTHING_IS_KEPT}", "status"),
    "queue": ("octet_length(queue) BETWEEN 1 AND 400", _words("queue")),
    "job": ("octet_length(job) BETWEEN 1 AND 800", _words("job")),
    "priority": ("priority BETWEEN -100 AND 100", "priority"),
    "seq": ("seq > 0", "seq"),
    "created_at": (_time("created_at"), "created_at"),
    "due_at": (_time("due_at"), "due_at"),
    "epoch": (_count("epoch"), "epoch"),
    "failures": (_count("failures"), "failures"),
    "crashes": (_count("crashes"), "crashes"),
    "snoozes": (_count("snoozes"), "snoozes"),
    "hand_backs": (_count("hand_backs"), "hand_backs"),
    "awaits": (f"{_if_any(_count('awaits'))} AND (status <> {_HELD} OR awaits > 0) IS TRUE", _beside_status("awaits::text")),
    "joins": (_if_any(f"octet_length(joins) <= {16 * MOST_JOINS}"), _bytes("joins")),
    "behind": (_if_any("octet_length(behind) = 16"), _bytes("behind")),
    "session": (
        f"(status = {_RUNNING}) = (session IS NOT NULL) AND {_if_any('octet_length(session) = 16')}",
        _beside_status(_bytes("session")),
    ),
    "request": (
        f"status <> {_RUNNING} OR (request >= 0 AND number >= 0 AND claimed_steady IS NOT NULL) IS TRUE",
        _beside_status("request::text"),
    ),
    "expires_at": (_if_any(_time("expires_at")), "expires_at"),
    "parked_at": (_if_any(_time("parked_at")), "parked_at"),
    "ended_at": (f"(status >= {_SUCCEEDED}) = (ended_at IS NOT NULL) AND {_if_any(_time('ended_at'))}", _beside_status("ended_at::text")),
    "fade_at": (f"(status >= {_SUCCEEDED}) = (fade_at IS NOT NULL) AND {_if_any(_time('fade_at'))}", _beside_status("fade_at::text")),
}
"""Column to what must be true of it, and to its value as text. A verb relies on each of them."""

_SESSIONS: Final[dict[str, tuple[str, str]]] = {
    "name": ("octet_length(name) <= 4096", "coalesce(left(name, 200), '')"),
    "ttl": (f"ttl BETWEEN 1 AND {to_microseconds(LONGEST)}", "R.session_ttl"),
    "about": (f"octet_length(about) <= {MOST_BYTES}", "''"),
    "registered_at": (_time("registered_at"), "now_at"),
    "beat_at": ("beat_at BETWEEN 0 AND steady + 1000000", "steady"),
    "floor": (_time("floor"), "0"),
    "older": ("older IS NOT NULL", "'{}'"),
    "is_spared": ("is_spared IS NOT NULL", "false"),
    "is_released": ("is_released IS NOT NULL AND (dead_at IS NOT NULL OR NOT is_released)", "false"),
    "dead_at": ("dead_at IS NULL OR dead_at BETWEEN 0 AND now_at", "now_at"),
}
"""Column to what must be true of it, and to what it is set to where it is not."""


def texts() -> dict[str, str]:
    """Name to SQL text."""
    return {
        "P.UNSOUND": f"({_all(JOBS)}) IS NOT TRUE",
        "P.HAS_ENDED": f"status BETWEEN {_SUCCEEDED} AND {GONE - 1} OR status = {GONE} AND {_NOTHING_IS_KEPT}",
        "P.PROBLEMS": "concat_ws(E'\\n', {})".format(
            ", ".join(f"CASE WHEN ({sound}) IS NOT TRUE THEN E'{column}\\t' || coalesce({shown}::text, 'NULL') END"
                      for column, (sound, shown) in JOBS.items())
        ),
        "P.UNSOUND_SESSION": f"({_all(_SESSIONS)}) IS NOT TRUE",
        "P.MENDED_SESSION": ", ".join(
            f"{column} = CASE WHEN {sound} THEN {column} ELSE {instead} END" for column, (sound, instead) in _SESSIONS.items()
        ),
        "P.MOST_JOINED_BYTES": str(16 * MOST_JOINS),
        "P.MOST_BYTES": str(MOST_BYTES),
        "P.MOST_PAYLOAD_BYTES": str(MOST_PAYLOAD_BYTES),
    }  # fmt: skip


def _all(conditions: dict[str, tuple[str, str]]) -> str:
    return " AND ".join(f"({sound})" for sound, _ in conditions.values())
