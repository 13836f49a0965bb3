"""Refuses payloads, definitions and results that are too long for SQLite, before they are copied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from taskflow.model.envelope import Envelope
from taskflow.model.errors import TooLarge
from taskflow.model.job_schema import LARGE
from taskflow.model.schedule import Definition
from taskflow.model.verdict import Settlement, Succeeded

LARGEST_VALUE: Final = 1_000_000_000
"""The maximum size of a value or row in the usual build of SQLite, in bytes (https://sqlite.org/limits.html)."""

LARGEST_PAYLOAD: Final = LARGE
"""The maximum size of a payload or a result, in bytes. A longer value in a row counts as damaged and is not fetched."""


def check_payloads(envelopes: Iterable[Envelope]) -> None:
    for envelope in envelopes:
        if len(envelope.payload) > LARGEST_PAYLOAD:
            raise _too_large(f"job {envelope.job} was not sent: its payload", envelope.payload, "send")


def check_definitions(definitions: Iterable[Definition]) -> None:
    for definition in definitions:
        if len(definition.body) > LARGEST_PAYLOAD:
            raise _too_large(f"schedule {definition.name} was not stored: its definition", definition.body, "use")


def check_settlements(settlements: Iterable[Settlement]) -> None:
    for settlement in settlements:
        verdict = settlement.verdict
        if type(verdict) is Succeeded and len(verdict.result) > LARGEST_PAYLOAD:
            raise _too_large("the result", verdict.result, "return")
        if settlement.follow_ups:
            check_payloads(settlement.follow_ups)


def _too_large(subject: str, value: bytes, act: str) -> TooLarge:
    return TooLarge(f"{subject} has {len(value):,} bytes, but SQLite allows at most {LARGEST_PAYLOAD:,}; {act} a reference to the data")
