"""What both applications do with a registration, and what they share."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from taskflow import JobHandle

from .tasks import WelcomeEmail, send_welcome_email, tell_staff

DELAY = float(os.environ.get("WELCOME_DELAY", "60"))


class State(TypedDict):
    """What the application's own lifespan gives to its requests."""

    name: str


@asynccontextmanager
async def lifespan(application: Any) -> AsyncIterator[State]:
    """The application's own. The worker begins after it and ends before it, so that jobs may use what it opens."""
    print("the application has opened", flush=True)
    yield State(name="example")
    print("the application has closed", flush=True)


async def register(email: str) -> str:
    """The id of the job that will send the mail, some time later."""
    user_id = f"user_{uuid.uuid4().hex[:8]}"
    await tell_staff.delay(user_id)
    handle = await send_welcome_email.options(max_attempts=5, after=DELAY).delay(WelcomeEmail(user_id, email))
    return handle.id


async def progress_of(job_id: str) -> dict[str, Any] | None:
    """How far the job is; None when there is none."""
    info = await JobHandle.of(job_id, job=send_welcome_email).info()
    if info is None:
        return None
    return {
        "status": info.status,
        "attempt": info.attempt,
        "max_attempts": info.max_attempts,
        "waited": (info.due_at - info.created_at).total_seconds(),
        "errors": [f"{error.type}: {error.message}" for error in info.errors],
        "result": info.result,
    }
