"""The names of wake-up topics."""

from __future__ import annotations

from typing import Final

ANY_QUEUE: Final = "queues"
DUE: Final = "due"


def queue(name: str) -> str:
    return f"queue:{name}"


def session(session_id: bytes) -> str:
    return f"session:{session_id.hex()}"


def job(job_id: bytes) -> str:
    return f"job:{job_id.hex()}"
