"""The arguments in a job's record, which are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from taskflow.app.job_type import AnyJob
from taskflow.model.codec import Limits, decode_by_name
from taskflow.model.errors import CodecError, DeclarationError


class StoredArguments:
    """The stored arguments of a job. `job` is the job type, if this process knows it. A pickled copy does not know it."""

    __slots__ = ("_decoded", "_job", "_limits", "_payload")

    def __init__(self, payload: bytes, limits: Limits, job: AnyJob | None = None) -> None:
        self._payload = payload
        self._limits = limits
        self._job = job
        self._decoded: Mapping[str, Any] | None = None

    def decoded(self) -> Mapping[str, Any] | None:
        """Return the arguments by parameter name; without annotations if they do not fit the job here, and None if they cannot be read."""
        if self._decoded is None:
            self._decoded = self._as_annotated() or self._as_sent()
        return self._decoded

    def _as_annotated(self) -> Mapping[str, Any] | None:
        try:
            return None if self._job is None else self._job.decoded_arguments(self._payload)
        except (CodecError, DeclarationError):
            return None

    def _as_sent(self) -> Mapping[str, Any] | None:
        try:
            return MappingProxyType(decode_by_name(self._payload, limits=self._limits))
        except CodecError:
            return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredArguments) and other._payload == self._payload and other._job is self._job

    def __hash__(self) -> int:
        return hash(self._payload)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArguments, (self._payload, self._limits)
