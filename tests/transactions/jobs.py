"""The jobs that the tests send."""

from __future__ import annotations

import time
from typing import Final

import taskflow
from taskflow.app.app import default_app

ran: Final = list[tuple[int, float]]()
"""The numbers of the notes that have run, and when."""


@taskflow.job(name="tests.transactions.charge")
async def charge(number: int) -> None: ...


@taskflow.job(name="tests.transactions.refund", key="{number}", key_scope="name")
async def refund(number: int) -> None: ...


@taskflow.job(name="tests.transactions.note")
async def note(number: int) -> None:
    ran.append((number, time.monotonic()))


async def admit() -> None:
    """Let the store admit what transactions have sent with keys: on PostgreSQL that follows their commits."""
    await default_app().broker().upkeep(1_000)
