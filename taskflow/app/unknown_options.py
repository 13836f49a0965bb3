"""Explains unknown options: suggests the most similar option, or taskflow's name for an option of another library."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from taskflow.model.suggestions import nearest

_AFTER: Final = "it is after= here, in seconds, given with a call: .options(after=60)"
_AT: Final = "it is at= here, an aware datetime, given with a call: .options(at=...)"
_KEY: Final = 'it is key= here, as in @job(key="{order_id}") or .options(key=...); at most one live job has a key'
_ATTEMPTS: Final = "it is max_attempts= here, which counts the first run too"
_RETRY: Final = "it is retry=Backoff(base=..., factor=..., max=...) here"
_RETRY_ON: Final = "it is retry_on= here, a tuple of exception classes"
_TIMEOUT: Final = "it is timeout= here, in seconds"
_KEEP: Final = "it is keep_result= here, in seconds"
_EXPIRES: Final = "it is expires= here, in seconds"
_ARGUMENTS: Final = "arguments of the job are given to .delay(...)"
_ACKNOWLEDGED: Final = "leave it out: a job is always acknowledged after its run, and runs again if its worker dies"
_SCHEDULE: Final = "it is schedule=Cron(...) or Every(...) here, given to the decorator"
_LIMIT: Final = "a job has no limit here: give it a queue, and run that queue with `taskflow worker --queues NAME --concurrency N`"
_HEADERS: Final = "it is headers= here, str to str"

_ANSWERS: Final = {
    "retries": _ATTEMPTS,
    "max_retries": _ATTEMPTS,
    "max_tries": _ATTEMPTS,
    "tries": _ATTEMPTS,
    "attempts": _ATTEMPTS,
    "default_retry_delay": _RETRY,
    "retry_delay": _RETRY,
    "retry_backoff": _RETRY,
    "retry_backoff_max": _RETRY,
    "retry_jitter": _RETRY,
    "backoff": _RETRY,
    "min_backoff": _RETRY,
    "max_backoff": _RETRY,
    "autoretry_for": _RETRY_ON,
    "retry_for": _RETRY_ON,
    "retry_when": _RETRY_ON,
    "throws": "errors that fail the job at once are discard_on= here, a tuple of exception classes",
    "countdown": _AFTER,
    "delay": _AFTER,
    "defer_by": _AFTER,
    "_defer_by": _AFTER,
    "schedule_in": _AFTER,
    "eta": _AT,
    "defer_until": _AT,
    "_defer_until": _AT,
    "schedule_at": _AT,
    "scheduled": _AT,
    "run_at": _AT,
    "unique": _KEY,
    "unique_key": _KEY,
    "lock": _KEY,
    "queueing_lock": _KEY,
    "job_id": _KEY,
    "_job_id": _KEY,
    "task_id": _KEY,
    "time_limit": _TIMEOUT,
    "soft_time_limit": _TIMEOUT,
    "job_timeout": _TIMEOUT,
    "result_ttl": _KEEP,
    "result_expires": _KEEP,
    "keep_result_forever": _KEEP,
    "store_results": _KEEP,
    "ignore_result": "it is keep_result=0 here",
    "failure_ttl": "leave it out: failed jobs are kept for 30 days",
    "ttl": _EXPIRES,
    "max_age": _EXPIRES,
    "age_limit": _EXPIRES,
    "_expires": _EXPIRES,
    "queue_name": "it is queue= here",
    "_queue_name": "it is queue= here",
    "meta": _HEADERS,
    "metadata": _HEADERS,
    "labels": _HEADERS,
    "args": _ARGUMENTS,
    "kwargs": _ARGUMENTS,
    "bind": "annotate the function's first parameter with JobContext to get the context of the run",
    "pass_context": "annotate the function's first parameter with JobContext to get the context of the run",
    "acks_late": _ACKNOWLEDGED,
    "reject_on_worker_lost": _ACKNOWLEDGED,
    "task_acks_late": _ACKNOWLEDGED,
    "serializer": "leave it out: annotations decide how values are sent",
    "crontab": _SCHEDULE,
    "cron": _SCHEDULE,
    "run_every": _SCHEDULE,
    "rate_limit": _LIMIT,
    "concurrency": _LIMIT,
    "concurrency_limit": _LIMIT,
    "actor_name": "it is name= here, given to @job",
    "task_name": "it is name= here, given to @job",
}
"""Options of Celery, RQ, arq, dramatiq, huey, SAQ, taskiq and Procrastinate, and what to use instead."""


def unknown_option(name: str, known: Collection[str], elsewhere: Collection[str], where_else: str) -> str:
    """Return the error message for an option that is not in `known`. For an
    option in `elsewhere`, the message says to give it to `where_else` instead."""
    unknown = f"unknown option {name}="
    if name in elsewhere:
        return f"{unknown}: give it {where_else}"
    if name in _ANSWERS:
        return f"{unknown}: {_ANSWERS[name]}"
    near = nearest(name, known)
    return f"{unknown}; did you mean {near}=?" if near else f"{unknown}; options are {', '.join(known)}"
