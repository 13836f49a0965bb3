# ruff: noqa: I001, E501  # the block stands as it was promised
from __future__ import annotations

# fmt: off
# block 1.1
# app/tasks.py
from dataclasses import dataclass
from datetime import date
from taskflow import JobContext, job

@dataclass
class WelcomeEmail:
    user_id: str
    email: str

@job(name="send_welcome_email", max_attempts=3)
async def send_welcome_email(data: WelcomeEmail) -> None:
    print(f"to {data.email}")

@job                                    # its name is "app.tasks.add": module and qualified name
async def add(x: int, y: int = 1) -> int:
    return x + y

@job(queue="reports", timeout=600)
async def report(ctx: JobContext, day: date) -> str:    # a first parameter annotated JobContext is injected; .delay() does not take it
    await ctx.progress(0.5, "half way")
    return f"{ctx.job_id} attempt {ctx.attempt} of {ctx.max_attempts}, made {ctx.created_at}, queue {ctx.queue}, {day}"

@job
def resize(path: str) -> str:           # a plain function runs in a thread
    return path + ".small"

@job(runs_in="process", stop_grace=5)   # CPU-bound: a child process; asked to stop it gets JobStopping (raised in its code), and is killed 5 s later
def crunch(n: int) -> int:
    return sum(range(n))
# end of block
