"""The information about a job that applications see. Arguments are decoded on first use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from taskflow.app.context import NamesArguments
from taskflow.model.codec import Limits, decode_by_name
from taskflow.model.errors import CodecError, DeclarationError
from taskflow.model.record import Status, queue_wait
from taskflow.model.verdict import Progress, RunEnding
from taskflow.model.wording import POISON


class StoredArguments:
    """The stored arguments of a job. `job` is the job type, if this process knows it; a pickled copy leaves it out."""

    __slots__ = ("_decoded", "_job", "_limits", "_payload")

    def __init__(self, payload: bytes, limits: Limits, job: NamesArguments | None = None) -> None:
        self._payload = payload
        self._limits = limits
        self._job = job
        self._decoded: Mapping[str, Any] | None = None

    def decoded(self) -> Mapping[str, Any] | None:
        """Return the arguments by parameter name, without using annotations if the job is unknown or they don't fit; None if that fails."""
        if self._decoded is None:
            if self._job is not None:
                with suppress(CodecError, DeclarationError):
                    self._decoded = self._job.decoded_arguments(self._payload)
            if not self._decoded:
                with suppress(CodecError):
                    self._decoded = MappingProxyType(decode_by_name(self._payload, limits=self._limits))
        return self._decoded

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredArguments) and other._payload == self._payload and other._job is self._job

    def __hash__(self) -> int:
        return hash(self._payload)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArguments, (self._payload, self._limits)


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run that failed or was lost, and the reason: the exception's full type name, its message and its traceback.

    Times are aware datetimes in UTC, by the store's clock.

    `attempt`     the number of the attempt that failed
    `at`          when the run ended
    `ending`      how it ended: `RunEnding.FAILED`, `RunEnding.TIMED_OUT`, or `RunEnding.CRASHED` if its worker was lost
    `worker`      "host:pid" of its worker, or None if unknown
    `started_at`  when it started, or when its worker claimed the job if the worker was lost before it reported the start; None if unknown
    """

    type: str
    message: str
    traceback: str
    attempt: int
    at: datetime
    ending: RunEnding = RunEnding.FAILED
    worker: str | None = None
    started_at: datetime | None = None

    @property
    def ran_for(self) -> float | None:
        """The run's duration in seconds, or None if its start is unknown."""
        return None if self.started_at is None else (self.at - self.started_at).total_seconds()

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a job. Times are aware datetimes in UTC, by the store's clock.

    `attempt`      the number of the current or next attempt, or of the last one if the job has ended
    `errors`       one entry for each run that failed or was lost, oldest first. If they exceed 64 KiB, only the last one is kept
    `due_at`       when the job may start; no run starts after `expires_at`
    `failures`     how many attempts failed since the job was sent or retried; `crashes` counts the runs lost with their worker
    `started_at`   when the last run started; None if no run has started since the job was sent or retried
    `waiting_for`  why the job is waiting, unless it is only waiting for its time or for a worker
    `reason`       why the job ended, if a reason was recorded
    `tags`         the job's tags, those of its decorator first
    `worker`       "host:pid" of the worker that is running the job or ran it last
    `key`          the job's key, or None. The values of secrets in a declared key are "[hidden]"
    `flow`         the id of the flow that the job belongs to, or None
    `awaits`       how many jobs of its flow it still waits for
    `key_holder`   the id of the running job with the same key for which this job waits, or None
    `schedule`     the name of the schedule that added the job, or None; `scheduled_for` is the time for which it added the job
    `result`       the decoded return value. None until the job succeeds, and also if the value
                   cannot be decoded, in which case `JobHandle.result` raises the error
    """

    id: str
    job: str
    queue: str
    status: Status
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    due_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    failures: int
    crashes: int
    snoozes: int
    worker: str | None
    progress: Progress | None
    reason: str | None
    waiting_for: str | None
    errors: tuple[ErrorInfo, ...]
    headers: dict[str, str]
    cancel_requested: bool
    key: str | None = None
    key_holder: str | None = None
    flow: str | None = None
    awaits: int = 0
    tags: tuple[str, ...] = ()
    schedule: str | None = None
    scheduled_for: datetime | None = None
    result: Any = None
    _arguments: StoredArguments | None = None

    @property
    def error(self) -> ErrorInfo | None:
        """The error that ended a failed job. None for other jobs, and for a job that discarded itself: its `reason` says why."""
        if self.status is not Status.FAILED or not self.errors:
            return None
        last, reason = self.errors[-1], self.reason or ""
        return last if reason == str(last) or reason.startswith(POISON) else None

    @property
    def queue_wait(self) -> float | None:
        """How many seconds the job was ready before its last run started. None while the job waits or its start has not been
        reported, and if the job ended without a run. If a run was handed back, that run and the wait before it are included."""
        return queue_wait(self.status, self.due_at, self.started_at, [error.at for error in self.errors])

    @property
    def arguments(self) -> Mapping[str, Any] | None:
        """The arguments by parameter name; read-only. They are decoded on first use.

        If this process knows the job, they are the values that its function gets, with the defaults of those that were not given. If it
        does not know the job, or if they do not fit its annotations, they are decoded without annotations: instances of classes are dicts,
        for example. None if the store no longer has them, as for a job that succeeded without `keep_arguments`, or if they cannot be
        decoded at all.

        Values marked as `Secret` appear here as they were sent: they are hidden only in what taskflow prints.
        """
        return None if self._arguments is None else self._arguments.decoded()

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # without the arguments, which may be large or secret
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "_arguments"]

    def __repr__(self) -> str:
        return f"JobInfo({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
