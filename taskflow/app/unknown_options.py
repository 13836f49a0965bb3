"""Explains unknown options: suggests the most similar option, or taskflow's name for an option of another library."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from taskflow.model.suggestions import nearest

_NAMES: Final = {
    "it is max_attempts= here, which counts the first run too": "retries max_retries max_tries tries attempts",
    "it is retry=Backoff(base=..., factor=..., max=...) here": (
        "default_retry_delay retry_delay retry_backoff retry_backoff_max retry_jitter backoff min_backoff max_backoff"
    ),
    "it is retry_on= here, a tuple of exception classes": "autoretry_for retry_for retry_when",
    "errors that fail the job at once are discard_on= here, a tuple of exception classes": "throws",
    "it is after= here, in seconds, given with a call: .options(after=60)": "countdown delay defer_by _defer_by schedule_in",
    "it is at= here, an aware datetime, given with a call: .options(at=...)": "eta defer_until _defer_until schedule_at scheduled run_at",
    'it is key= here, as in @job(key="{order_id}") or .options(key=...); at most one live job has a key': (
        "unique unique_key lock queueing_lock job_id _job_id task_id"
    ),
    "it is timeout= here, in seconds": "time_limit soft_time_limit job_timeout",
    "it is keep_result= here, in seconds": "result_ttl result_expires keep_result_forever store_results",
    "it is keep_result=0 here": "ignore_result",
    "leave it out: failed jobs are kept for 30 days": "failure_ttl",
    "it is expires= here, in seconds": "ttl max_age age_limit _expires",
    "it is queue= here": "queue_name _queue_name",
    "it is headers= here, str to str": "meta metadata labels",
    "arguments of the job are given to .delay(...)": "args kwargs",
    "annotate the function's first parameter with JobContext to get the context of the run": "bind pass_context",
    "leave it out: a job is always acknowledged after its run, and runs again if its worker dies": (
        "acks_late reject_on_worker_lost task_acks_late"
    ),
    "leave it out: annotations decide how values are sent": "serializer",
    "it is schedule=Cron(...) or Every(...) here, given to the decorator": "crontab cron run_every",
    "a job has no limit here: give it a queue, and run that queue with `taskflow worker --queues NAME --concurrency N`": (
        "rate_limit concurrency concurrency_limit"
    ),
    "it is name= here, given to @job": "actor_name task_name",
}
"""What to use here instead of options of Celery, RQ, arq, dramatiq, huey, SAQ, taskiq and Procrastinate, with their names."""


def unknown_option(name: str, known: Collection[str], elsewhere: Collection[str], where_else: str) -> str:
    """Return the error message for an option that is not in `known`. For an
    option in `elsewhere`, the message says to give it to `where_else` instead."""
    unknown = f"unknown option {name}="
    if name in elsewhere:
        return f"{unknown}: give it {where_else}"
    for answer, names in _NAMES.items():
        if name in names.split():
            return f"{unknown}: {answer}"
    near = nearest(name, known)
    return f"{unknown}; did you mean {near}=?" if near else f"{unknown}; options are {', '.join(known)}"
