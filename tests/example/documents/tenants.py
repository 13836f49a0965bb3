"""The member who makes a request, and the tenant for whom a job runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponse

from taskflow import EnqueueCall, JobContext, Middleware, RunNext, Verdict

current_member: ContextVar[str | None] = ContextVar("current_member", default=None)
current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")


def with_member(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def handle(request: HttpRequest) -> HttpResponse:
        token = current_member.set(request.headers.get("X-Member"))
        try:
            return get_response(request)
        finally:
            current_member.reset(token)

    return handle


class Tenants(Middleware):
    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        """Ask the database in the caller's thread, and so in its transaction. A job that sends another one passes its tenant on."""
        from .models import Member

        member = current_member.get()
        tenant = current_tenant.get() if member is None else Member.objects.select_related("tenant").get(name=member).tenant.name
        for call in calls:
            call.headers["tenant"] = tenant

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        token = current_tenant.set(context.headers.get("tenant", ""))
        try:
            return await call_next(context)
        finally:
            current_tenant.reset(token)
