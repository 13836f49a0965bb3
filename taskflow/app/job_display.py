"""Converts a job's record, arguments and result to JSON for display. Secrets are hidden, and no user code is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from taskflow.model.clock import instant_of
from taskflow.model.codec import Limits, decode_by_name, decode_value
from taskflow.model.codec.compiler import RETURNED
from taskflow.model.envelope import job_of
from taskflow.model.errors import CodecError
from taskflow.model.ids import id_text
from taskflow.model.masking import HIDDEN, DisplayLimits, is_secret, masked_map, masked_text, masked_value
from taskflow.model.printable import MIN_BAR, bar_of
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import scheduled_for
from taskflow.model.verdict import RunError

IN_FULL: Final = DisplayLimits(characters=16_384, items=10_000, levels=64)
AT_A_GLANCE: Final = DisplayLimits(characters=400, items=20, levels=4)


def detail(record: Record) -> str:
    """Return the facts that matter most in the job's current state: the schedule that added it, and its error, progress or reason."""
    schedule = f"by schedule {record.headers[SCHEDULE]}" if SCHEDULE in record.headers else ""
    return "  ".join(filter(None, (schedule, _why(record))))


def _why(record: Record) -> str:
    if record.unreadable:
        return f"unreadable: {'; '.join(map(str, record.unreadable))}"
    if record.reason or record.waiting_for:
        return (record.reason or record.waiting_for or "").partition("\n")[0]
    if record.progress and record.status is Status.RUNNING:
        share = record.progress.fraction
        return f"{bar_of(share, MIN_BAR)} {share:.0%}  {record.progress.note}".rstrip()
    if record.errors and not record.status.is_ended:
        return f"last error: {record.errors[-1].type}: {record.errors[-1].message}"
    return ""


# Fields of a record that its JSON shows in another form, or not at all.
_APART: Final = {
    *("id", "on_failure", "payload", "result", "errors", "progress"),
    *("unreadable", "secrets", "key_text", "headers", "behind", "cause", "member", "joins", "cancelled_by", "fair"),
}
_ALIKE: Final = tuple(name for name in Record.__struct_fields__ if name not in _APART)


def record_json(record: Record) -> dict[str, Any]:
    """Convert a record to JSON, without the job's arguments and its result."""
    headers = {name: HIDDEN if name in record.secrets or is_secret(name) else masked_text(text) for name, text in record.headers.items()}
    return {
        "id": id_text(record.id),
        "status": record.status,
        "attempt": record.attempt,
        **{name: getattr(record, name) for name in _ALIKE},
        "key": record.key_text,
        "key_holder": None if record.behind is None else id_text(record.behind),
        "flow": None if record.member is None else id_text(record.member.flow),
        "headers": headers,
        "queue_wait": record.queue_wait,
        "group": record.fingerprint.hex() if record.status is Status.FAILED else None,
        "deploy": record.deploy or None,
        "schedule": record.headers.get(SCHEDULE),
        "scheduled_for": scheduled_for(record.headers),
        "tags": list(record.tags),
        "on_failure": None if record.on_failure is None else _called_on_failure(record.on_failure),
        "progress": record.progress,
        "unreadable": [{"column": each.column, "problem": each.problem, "bytes": each.raw.hex()} for each in record.unreadable],
        "errors": [_error_json(error) for error in record.errors],
    }


def _called_on_failure(packed: bytes) -> str:
    try:
        return job_of(packed)
    except ValueError as error:
        return f"a call that cannot be read: {error}"


def _error_json(error: RunError) -> dict[str, Any]:
    fields = {name: getattr(error, name) for name in ("type", "message", "traceback", "attempt", "ending")}
    times = {"started_at": instant_of(error.started_at) if error.started_at else None, "at": instant_of(error.at)}
    return fields | {"worker": error.worker or None} | times


def detailed_json(record: Record, limits: Limits) -> dict[str, Any]:
    """Convert a record to JSON, with the job's arguments and its result. Secrets are hidden."""
    arguments, problem = arguments_of(record, limits, IN_FULL)
    result, result_problem = result_of(record, limits, IN_FULL)
    more = {"arguments": arguments, "arguments_problem": problem, "result": result, "result_problem": result_problem}
    return record_json(record) | more


def arguments_of(record: Record, limits: Limits, display: DisplayLimits) -> tuple[dict[str, Any] | None, str | None]:
    """Return the arguments by name, for display. If that's impossible, return None and the reason."""
    payload = record.payload
    if payload is None:
        return None, "not kept: the job has succeeded" if record.result is not None else "not kept"
    return _shown(lambda: masked_map(decode_by_name(payload, limits=limits), record.secrets, display))


def result_of(record: Record, limits: Limits, display: DisplayLimits) -> tuple[Any, str | None]:
    """Return the result, for display. If it can't be decoded, return None and the reason; if there is no result, return None twice."""
    result = record.result
    if not result or RETURNED in record.secrets:
        return HIDDEN if result else None, None
    return _shown(lambda: masked_value(decode_value(result, limits=limits), record.secrets, display))


def _shown(convert: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return convert(), None
    except CodecError as error:
        return None, f"cannot be decoded: {error}"
