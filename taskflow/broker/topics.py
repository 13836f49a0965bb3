"""The names of wake-up topics."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

ANY_QUEUE: Final = "queues"
DUE: Final = "due"


def queue(name: str) -> str:
    return f"queue:{name}"


def session(session_id: bytes) -> str:
    return f"session:{session_id.hex()}"


def job(job_id: bytes) -> str:
    return f"job:{job_id.hex()}"


QUEUE_PREFIX: Final = queue("")
SESSION_PREFIX: Final = session(b"")
_JOB_PREFIX: Final = job(b"")


def is_queue(topic: str) -> bool:
    return topic == ANY_QUEUE or topic.startswith(QUEUE_PREFIX)


def job_ids(topics: Iterable[str]) -> list[bytes]:
    """Return the ids of the jobs among these topics."""
    return [bytes.fromhex(topic.removeprefix(_JOB_PREFIX)) for topic in topics if topic.startswith(_JOB_PREFIX)]


def split_topics(topics: Collection[str]) -> tuple[list[bytes], list[str]]:
    """Split topics into the ids of jobs and the other topics."""
    return job_ids(topics), [topic for topic in topics if not topic.startswith(_JOB_PREFIX)]
