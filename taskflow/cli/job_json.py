"""Converts records of jobs to JSON, for `taskflow jobs`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from taskflow.model.clock import instant_of
from taskflow.model.codec import Limits, decode_by_name, decode_value
from taskflow.model.codec.compiler import RETURNED
from taskflow.model.errors import CodecError
from taskflow.model.ids import id_text
from taskflow.model.masking import HIDDEN, DisplayLimits, is_secret, masked_map, masked_text, masked_value
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import scheduled_for
from taskflow.model.verdict import RunError

IN_FULL: Final = DisplayLimits(characters=16_384, items=10_000, levels=64)

_APART: Final = (
    "id",
    "on_failure",
    "payload",
    "result",
    "errors",
    "progress",
    "unreadable",
    "secrets",
    "key_text",
    "headers",
    "behind",
    "cause",
)


def record_json(record: Record) -> dict[str, Any]:
    """Convert a record, without the job's arguments and its result."""
    fields = {name: getattr(record, name) for name in Record.__struct_fields__ if name not in _APART}
    shown: dict[str, Any] = {"id": id_text(record.id), "status": record.status, "attempt": record.attempt}
    fields |= {
        "key": record.key_text,
        "key_holder": None if record.behind is None else id_text(record.behind),
        "headers": masked_headers(record),
        "queue_wait": record.queue_wait,
        "group": record.fingerprint.hex() if record.status is Status.FAILED else None,
        "deploy": record.deploy or None,
    }
    fields |= {"schedule": record.headers.get(SCHEDULE), "scheduled_for": scheduled_for(record.headers)}
    shown |= {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
    shown["tags"] = list(record.tags)
    shown["on_failure"] = None if record.on_failure is None else called_on_failure(record.on_failure)
    shown["progress"] = None if record.progress is None else {"fraction": record.progress.fraction, "note": record.progress.note}
    shown["unreadable"] = [{"column": u.column, "problem": u.problem, "bytes": u.raw.hex()} for u in record.unreadable]
    shown["errors"] = [_error_json(error) for error in record.errors]
    return shown


def detailed_json(record: Record, limits: Limits) -> dict[str, Any]:
    """Convert a record, with the job's arguments and its result. Secrets are hidden."""
    arguments, problem = arguments_of(record, limits, IN_FULL)
    result, result_problem = result_of(record, limits, IN_FULL)
    more = {"arguments": arguments, "arguments_problem": problem, "result": result, "result_problem": result_problem}
    return record_json(record) | more


def arguments_of(record: Record, limits: Limits, display: DisplayLimits) -> tuple[dict[str, Any] | None, str | None]:
    """Return the arguments by name, for display. If that is impossible, return None and why."""
    payload = record.payload
    if payload is None:
        return None, "not kept: the job has succeeded" if record.result is not None else "not kept"
    return _shown(lambda: masked_map(decode_by_name(payload, limits=limits), record.secrets, display))


def result_of(record: Record, limits: Limits, display: DisplayLimits) -> tuple[Any, str | None]:
    """Return the result, for display. If there is none, return None. If it cannot be decoded, return None and why."""
    result = record.result
    if not result:
        return None, None
    if RETURNED in record.secrets:
        return HIDDEN, None
    return _shown(lambda: masked_value(decode_value(result, limits=limits), record.secrets, display))


def _shown(convert: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return convert(), None
    except CodecError as error:
        return None, f"cannot be decoded: {error}"


def masked_headers(record: Record) -> dict[str, str]:
    return {name: HIDDEN if name in record.secrets or is_secret(name) else masked_text(value) for name, value in record.headers.items()}


def called_on_failure(packed: bytes) -> str:
    """Return the name of the job that is called if this one fails, without its arguments."""
    from taskflow.model.envelope import job_of

    try:
        return job_of(packed)
    except ValueError as error:
        return f"a call that cannot be read: {error}"


def _error_json(error: RunError) -> dict[str, Any]:
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "attempt": error.attempt,
        "ending": error.ending,
        "worker": error.worker or None,
        "started_at": instant_of(error.started_at).isoformat() if error.started_at else None,
        "at": instant_of(error.at).isoformat(),
    }
