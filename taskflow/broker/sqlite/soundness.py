"""Which rows are sound. A row with a value that no broker could have stored is read with care, and then mended by `Transitions`.

SQLite takes any value in any column, and anybody who can write the file can change it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from taskflow.broker.sqlite.refusals import LARGEST_PAYLOAD
from taskflow.broker.sqlite.row import COLUMNS, LEFT_ALONE, JobRow, pack_spoilt, unpack_spoilt
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import PRIORITIES
from taskflow.model.record import CODES, Status
from taskflow.model.stored import MAX_RAW, FieldReader, Unreadable, octets, text, whole

_HELD: Final = CODES[Status.HELD]
_READY: Final = CODES[Status.READY]
_RUNNING: Final = CODES[Status.RUNNING]
_SUCCEEDED: Final = CODES[Status.SUCCEEDED]
_FAILED: Final = CODES[Status.FAILED]

_SMALL: Final = 1 << 20
_LARGE: Final = LARGEST_PAYLOAD
"""Bytes of a value that are fetched, of a payload or result and of anything else: `job` in transitions.sql looks at the length first."""

_KEPT: Final = 65_536
"""Bytes of a replaced value that are kept."""


class _Column(NamedTuple):
    """What a column may hold. `least` and `most` bound a number, or the length of bytes and text."""

    kind: type[int] | type[bytes] | type[str]
    least: int = 0
    most: int = (1 << 63) - 1
    or_none: bool = True

    def decode(self, stored: Any) -> Any:
        """Return the stored value itself; raises ValueError or TypeError if it is unsound."""
        if stored is None:
            if self.or_none:
                return None
            raise ValueError("expected a value, got none")
        if self.kind is int:
            return whole(stored, self.least, self.most)
        if _is_oversized(self, stored):
            raise ValueError(f"it has {-stored:,} bytes, more than are read")
        length = len(text(stored) if self.kind is str else octets(stored))
        if not self.least <= length <= self.most:
            raise ValueError(f"expected {self.least} to {self.most} bytes, got {length:,}")
        return stored


def _is_oversized(column: _Column, stored: Any) -> bool:
    """In place of its bytes comes their number, below zero: see `job` in transitions.sql."""
    return column.kind is not int and type(stored) is int and stored < -_SMALL


_COUNT: Final = _Column(int, most=1 << 53, or_none=False)
_INSTANT: Final = _Column(int, or_none=False)
_MAYBE_INSTANT: Final = _Column(int)
_TEXT: Final = _Column(str, most=_SMALL)
_BYTES: Final = _Column(bytes, most=_SMALL)
_ID: Final = _Column(bytes, 16, 16)

_SCHEMA: Final = {
    "seq": _Column(int, least=-(1 << 63), or_none=False),
    "id": _ID._replace(or_none=False),
    "code": _Column(int, most=max(CODES.values())),
    "queue": _Column(int, least=1, or_none=False),
    "name": _Column(int, least=1, or_none=False),
    "priority": _Column(int, PRIORITIES[0], PRIORITIES[-1], or_none=False),
    "created_at": _INSTANT,
    "due_at": _INSTANT,
    "expires_at": _MAYBE_INSTANT,
    "key": _BYTES,
    "extras": _BYTES,
    "awaits": _COUNT,
    "joins": _Column(bytes, most=_LARGE),
    "behind": _ID,
    "epoch": _COUNT,
    "failures": _COUNT,
    "crashes": _COUNT,
    "snoozes": _COUNT,
    "hand_backs": _COUNT,
    "claim": _Column(bytes, 28, 28),
    "claimed_at": _MAYBE_INSTANT,
    "claimed_steady": _INSTANT,
    "started_at": _MAYBE_INSTANT,
    "worker": _TEXT,
    "progress": _BYTES,
    "settled": _Column(bytes, 36, 36),
    "parked_at": _MAYBE_INSTANT,
    "cancel_requested": _TEXT,
    "reason": _TEXT,
    "waiting_for": _TEXT,
    "is_poison": _Column(int, most=1, or_none=False),
    "ended_at": _MAYBE_INSTANT,
    "fade_at": _MAYBE_INSTANT,
    "spoilt": _Column(bytes, most=_LARGE),
    "errors": _BYTES,
    "result": _Column(bytes, most=_LARGE),
    "payload": _Column(bytes, most=_LARGE),
}
assert tuple(_SCHEMA) == COLUMNS

_BOUNDS: Final = tuple((at, column.least, column.most) for at, column in enumerate(_SCHEMA.values()) if column.kind is int)
_LENGTHS: Final = tuple((at, column.least, column.most) for at, column in enumerate(_SCHEMA.values()) if column.kind is bytes)
_TEXTS: Final = tuple(at for at, column in enumerate(_SCHEMA.values()) if column.kind is str)

_sound_kinds: Final = set[tuple[type, ...]]()
"""Types that whole rows were seen to have: there are a few dozen sets of them."""
_MOST_KINDS: Final = 1_000


def is_sound(row: tuple[Any, ...]) -> bool:
    """Return True if the row is as a broker writes it. False may also mean that it takes a closer look."""
    if tuple(map(type, row)) not in _sound_kinds:
        return False
    for at, least, most in _BOUNDS:
        if (number := row[at]) is not None and not least <= number <= most:
            return False
    for at, least, most in _LENGTHS:
        if (stored := row[at]) is not None and not least <= len(stored) <= most:
            return False
    return _contradiction(row[_CODE], row[_AWAITS], row[_CLAIM], row[_ENDED_AT], row[_FADE_AT]) is None


_CODE, _AWAITS, _CLAIM, _ENDED_AT, _FADE_AT = map(COLUMNS.index, ("code", "awaits", "claim", "ended_at", "fade_at"))


def _contradiction(code: int | None, awaits: int, claim: bytes | None, ended_at: int | None, fade_at: int | None) -> str | None:
    """Return the name of a column that contradicts another one."""
    if (code == _RUNNING) != (claim is not None):
        return "claim"
    is_ended = code is None or code >= _SUCCEEDED
    if is_ended != (ended_at is not None):
        return "ended_at"
    if is_ended != (fade_at is not None):
        return "fade_at"
    if not is_ended and (code == _HELD) != (awaits > 0):
        return "awaits"
    return None


class Closely(NamedTuple):
    """A job after a closer look. If `is_mended`, it differs from its row, which must be written anew."""

    job: JobRow
    is_mended: bool
    oversized: tuple[str, ...] = ()
    """Columns whose values are too long for the row."""


def look_closely(row: tuple[Any, ...], now: int, also: Unreadable | None = None) -> Closely:
    """Read a row value by value. An unsound value takes a default, and is noted in `spoilt` with its bytes. So is `also`.

    A job that waits with an unsound value becomes READY: its next lease says what cannot be read, and its worker ends it FAILED.
    """
    reader, raw = FieldReader(), dict(zip(COLUMNS, row, strict=True))
    values = {name: reader.read(name, raw[name], column.decode, _default(name, raw, now)) for name, column in _SCHEMA.items()}
    job = JobRow(**values)
    known = _known(job)
    found = [each for each in reader.unreadable if not (each.column in LEFT_ALONE and each.column in known)]
    if also is not None:
        found.append(also)
    if (odd := _contradiction(job.code, job.awaits, job.claim, job.ended_at, job.fade_at)) is not None and not found:
        found.append(Unreadable(odd, f"it contradicts the job's status, {job.status or 'dropped'}", repr(raw[odd]).encode()[:MAX_RAW]))
    if not found:
        if not reader.unreadable:
            _remember_kinds(row)
        return Closely(job, False)
    kept = {
        each.column: Unreadable(_NAMES.get(each.column, each.column), each.problem, _raw(raw[each.column]) or each.raw) for each in found
    }
    job.spoilt = pack_spoilt({**known, **kept}.values())
    _make_consistent(job, now, is_code_sound="code" not in kept)
    return Closely(job, True, tuple(name for name in kept if _is_oversized(_SCHEMA[name], raw[name])))


_NAMES: Final = {"code": "status"}
"""Columns that are called otherwise in the file."""


def _default(name: str, raw: dict[str, Any], now: int) -> Any:
    if name == "id":  # one that can be named: any other would do
        return hashlib.sha256(repr((raw["seq"], raw["id"])).encode(errors="replace")).digest()[:16]
    if name in ("created_at", "due_at"):
        return now
    return None if _SCHEMA[name].or_none else 0


def _known(job: JobRow) -> dict[str, Unreadable]:
    """What an earlier look found."""
    try:
        return {} if job.spoilt is None else {each.column: each for each in unpack_spoilt(job.spoilt)}
    except Exception:  # then it is noted anew
        return {}


def _raw(stored: Any) -> bytes:
    if isinstance(stored, bytes):
        return stored[:_KEPT]
    return stored.encode(errors="surrogatepass")[:_KEPT] if isinstance(stored, str) else b""


def _remember_kinds(row: tuple[Any, ...]) -> None:
    """Not of texts kept as bytes: whether these are sound, only a closer look tells."""
    if len(_sound_kinds) < _MOST_KINDS and not any(type(row[at]) is bytes for at in _TEXTS):
        _sound_kinds.add(tuple(map(type, row)))


def _make_consistent(job: JobRow, now: int, *, is_code_sound: bool) -> None:
    """Give a mended job a status that its other values allow."""
    has_ended = job.ended_at is not None and job.fade_at is not None
    was_live = job.ended_at is None and job.fade_at is None
    if not is_code_sound:
        job.code = _FAILED if has_ended else _READY
    elif job.code is None or job.code >= _SUCCEEDED:
        job.code = _READY if was_live else job.code
    elif has_ended:
        job.code = _FAILED
    if job.code is None or job.code >= _SUCCEEDED:
        job.claim = None
        job.ended_at = now if job.ended_at is None else job.ended_at
        job.fade_at = now + _KEEP if job.fade_at is None else job.fade_at
        return
    job.awaits, job.ended_at, job.fade_at = 0, None, None
    if job.code != _RUNNING or job.claim is None:
        job.code, job.claim, job.behind, job.waiting_for = _READY, None, None, None
        job.due_at = min(job.due_at, now)


_KEEP: Final = to_microseconds(300.0)
