"""The shape of `Failure`, which takes the place of a job's result in a group if the job did not succeed."""

from __future__ import annotations

from typing import Any

from taskflow.model.batch import Failure
from taskflow.model.codec import wire as codes
from taskflow.model.codec.shape import Shape, ShapeError, type_name, unexpected
from taskflow.model.codec.wire import marker, marker_of, pack, wire_type
from taskflow.model.errors import JobCancelled, JobFailed
from taskflow.model.flow import FailureNote
from taskflow.model.ids import id_text


def failure_body(failure: FailureNote) -> bytes:
    """Encode a failure as a value for a payload."""
    job_id = id_text(failure.job_id)
    return pack([marker(codes.FAILURE), failure.type, failure.message, job_id])


def _write(value: Any, _levels: int) -> list[Any]:
    if type(value) is not Failure:
        raise unexpected("Failure", value)
    error = value.error
    if isinstance(error, JobFailed):
        return [marker(codes.FAILURE), error.type, error.message, error.job_id]
    if isinstance(error, JobCancelled):
        return [marker(codes.FAILURE), "", error.reason, error.job_id]
    return [marker(codes.FAILURE), type_name(type(error)), str(error), ""]


def _read(wire: Any, _levels: int) -> Failure:
    if type(wire) is not list or marker_of(wire) != codes.FAILURE or [type(part) for part in wire[1:]] != [str, str, str]:
        raise ShapeError(f"expected Failure, got {wire_type(wire)}")
    _, kind, message, job_id = wire
    if not kind:
        return Failure(JobCancelled(f"job {job_id} was cancelled: {message}", job_id=job_id, reason=message))
    return Failure(JobFailed(f"job {job_id} failed: {message}", job_id=job_id, type=kind, error_message=message, traceback=""))


def _read_json(wire: Any, _levels: int) -> Failure:
    raise ShapeError(f"expected Failure, which JSON cannot express, got {wire_type(wire)}")


FAILURE = Shape("Failure", _write, _read, _read_json, types=frozenset((Failure,)), forms=frozenset((codes.FAILURE,)))
