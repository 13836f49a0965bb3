# ruff: noqa: E501  # the block stands as it was promised
# mypy: disable-error-code="empty-body"
# pyright: reportReturnType=false
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from taskflow import JobContext, JobStopping, job


class transaction:  # noqa: N801  # the name of Django's module
    is_open = False

    @staticmethod
    @contextmanager
    def atomic() -> Iterator[None]:
        transaction.is_open = True
        yield
        transaction.is_open = False


def build(project_id: int) -> str:
    while project_id:
        time.sleep(0.01)
    return "whole"


# fmt: off
# block 1.3
@contextmanager
def in_transaction(ctx: JobContext) -> Iterator[None]:                   # runs where the job runs: in its thread, task or child process
    with transaction.atomic():
        yield

@job(around=[in_transaction], timeout_raises=True, keep_arguments=True)   # around: also in preset() and configure(defaults=)
def export(project_id: int) -> str:
    try:
        return build(project_id)
    except JobStopping:                                                   # raised in the thread at the timeout; what is returned is the result
        return "in part"

@job(retry=lambda attempt, error: 60.0 if isinstance(error, OSError) else None)   # seconds, or None: no further attempt
async def pull(url: str) -> bytes: ...
# end of block
