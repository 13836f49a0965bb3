"""Section 10: a user's own test, which is collected where it is imported."""

# ruff: noqa: E501  # the block stands as it was promised
from __future__ import annotations

from taskflow import TaskflowJobs
from tests.api.define import WelcomeEmail, send_welcome_email


async def signup(email: str) -> None:
    await send_welcome_email.delay(WelcomeEmail("user_123", email))


# fmt: off
# block 10.1
async def test_signup(taskflow_jobs: TaskflowJobs) -> None:     # pytest plugin, shipped with the package: memory broker, virtual clock, configure() undone after
    await signup("a@example.com")
    taskflow_jobs.assert_enqueued(send_welcome_email, WelcomeEmail("user_123", "a@example.com"))     # mock.ANY; queue=, key=, after= …
    await taskflow_jobs.run_all()                # through the real executor: decoding, middleware, retries; raises what failed for good, unless raises=False
    await taskflow_jobs.advance(days=3)          # retries, schedules, expiry, leases move on, in milliseconds
# end of block
