"""What happens around each job: the request that sent it is noted, errors are reported, and other services hear of its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from taskflow import EnqueueCall, JobContext, JobInfo, Middleware, RunNext, Verdict

request_id: ContextVar[str] = ContextVar("request_id", default="")


@dataclass
class Report:
    """An error, as it is sent to a service that collects errors."""

    job: str
    arguments: dict[str, Any]
    request: str
    error: BaseException
    is_final: bool


@dataclass
class Hooks(Middleware):
    """`outbox` has the calls of webhooks that wait to be made."""

    reports: list[Report] = field(default_factory=list)
    outbox: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        for call in calls:
            call.headers["request-id"] = request_id.get()

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        token = request_id.set(context.headers["request-id"])
        try:
            verdict = await call_next(context)
        finally:
            request_id.reset(token)
        if verdict.exception is not None:
            arguments = dict(context.arguments)
            self.reports.append(Report(context.job_name, arguments, context.headers["request-id"], verdict.exception, verdict.is_final))
        return verdict

    async def ended(self, info: JobInfo) -> None:
        await self.outbox.put({"job": info.job, "id": info.id, "status": info.status.value, "tags": [*info.tags]})
