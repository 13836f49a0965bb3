"""Detects unsound rows: those with a value that no broker could have
stored. This module reads them value by value, and `JobTable` repairs them.

SQLite accepts any value in any column, and anyone who can write to the file can change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from taskflow.broker.sqlite.columns import name_of
from taskflow.broker.sqlite.row import COLUMNS, LEFT_ALONE, JobRow, pack_spoilt, unpack_spoilt
from taskflow.model.clock import to_microseconds
from taskflow.model.ids import ID_BYTES
from taskflow.model.job_schema import BY_NAME, SMALL, Field
from taskflow.model.record import CODES, Status
from taskflow.model.stored_values import MAX_RAW, FieldReader, Unreadable, octets, text, whole

_HELD: Final = CODES[Status.HELD]
_READY: Final = CODES[Status.READY]
_RUNNING: Final = CODES[Status.RUNNING]
_SUCCEEDED: Final = CODES[Status.SUCCEEDED]
_FAILED: Final = CODES[Status.FAILED]

_KEPT: Final = 65_536
"""The number of bytes that are kept of a replaced value."""


def _decoder(field: Field) -> Callable[[Any], Any]:
    """Return a function that returns a sound value unchanged, and raises ValueError or TypeError for any other."""
    kind, least, most = field.kind

    def decode(stored: Any) -> Any:
        if stored is None:
            if field.default is None:
                return None
            raise ValueError("expected a value, got none")
        if kind is int:
            return whole(stored, least, most)
        if _is_oversized(field, stored):
            raise ValueError(f"it has {-stored:,} bytes, more than are read")
        length = len(text(stored) if kind is str else octets(stored))
        if not least <= length <= most:
            raise ValueError(f"expected {least} to {most} bytes, got {length:,}")
        return stored

    return decode


def _is_oversized(field: Field, stored: Any) -> bool:
    """Return True if `stored` is a negated length, which the queries return in place of an oversized value (see `columns._fetched`)."""
    return field.kind.type is not int and type(stored) is int and stored < -SMALL


_SCHEMA: Final = {column: BY_NAME[name_of(column)] for column in COLUMNS}
_DECODERS: Final = {column: _decoder(field) for column, field in _SCHEMA.items()}

_KINDS: Final = tuple(field.kind for field in _SCHEMA.values())
_BOUNDS: Final = tuple((at, kind.least, kind.most) for at, kind in enumerate(_KINDS) if kind.type is int)
_LENGTHS: Final = tuple((at, kind.least, kind.most) for at, kind in enumerate(_KINDS) if kind.type is bytes)
_TEXTS: Final = tuple(at for at, kind in enumerate(_KINDS) if kind.type is str)

_sound_kinds: Final = set[tuple[type, ...]]()
"""The combinations of types found in sound rows so far. There are a few dozen of them."""
_MOST_KINDS: Final = 1_000


def is_sound(row: tuple[Any, ...]) -> bool:
    """Return True if the row could have been written by a broker. False may also mean that the row needs a closer look."""
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
    """Return the name of a column that contradicts another one, or None."""
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


class Inspection(NamedTuple):
    """The result of `inspect_row`. If `is_repaired`, the job differs from its row, which must be written again."""

    job: JobRow
    is_repaired: bool
    oversized: tuple[str, ...] = ()
    """The columns whose values were too long to read."""


def inspect_row(row: tuple[Any, ...], now: int, also: Unreadable | None = None) -> Inspection:
    """Read a row value by value. An unsound value is replaced by a default,
    and `spoilt` lists it with its bytes. `also` is added to that list.

    A waiting job with an unsound value becomes READY. Its next lease lists the unreadable values, and its worker ends it as FAILED.
    """
    reader, raw = FieldReader(), dict(zip(COLUMNS, row, strict=True))
    values = {name: reader.read(name, raw[name], decode, _default(name, raw, now)) for name, decode in _DECODERS.items()}
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
        return Inspection(job, False)
    kept = {each.column: Unreadable(name_of(each.column), each.problem, _raw(raw[each.column]) or each.raw) for each in found}
    job.spoilt = pack_spoilt({**known, **kept}.values())
    _make_consistent(job, now, is_code_sound="code" not in kept)
    return Inspection(job, True, tuple(name for name in kept if _is_oversized(_SCHEMA[name], raw[name])))


def _default(name: str, raw: dict[str, Any], now: int) -> Any:
    if name == "id":  # any id that can be named would do
        return hashlib.sha256(repr((raw["seq"], raw["id"])).encode(errors="replace")).digest()[:ID_BYTES]
    if name in ("created_at", "due_at"):
        return now
    return _SCHEMA[name].default


def _known(job: JobRow) -> dict[str, Unreadable]:
    """Return the problems that an earlier closer look found, by column."""
    try:
        return {} if job.spoilt is None else {each.column: each for each in unpack_spoilt(job.spoilt)}
    except Exception:  # the closer look finds it again
        return {}


def _raw(stored: Any) -> bytes:
    if isinstance(stored, bytes):
        return stored[:_KEPT]
    return stored.encode(errors="surrogatepass")[:_KEPT] if isinstance(stored, str) else b""


def _remember_kinds(row: tuple[Any, ...]) -> None:
    """Remember the row's types as sound, unless it has text stored as bytes: such rows need a closer look each time."""
    if len(_sound_kinds) < _MOST_KINDS and not any(type(row[at]) is bytes for at in _TEXTS):
        _sound_kinds.add(tuple(map(type, row)))


def _make_consistent(job: JobRow, now: int, *, is_code_sound: bool) -> None:
    """Give a repaired job a status that fits its other values, and reset values that contradict the status."""
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
