"""taskflow: background jobs for Python. Start with `from taskflow import job`, and see the README.

Names are loaded when first used, so importing taskflow loads no driver, no web framework and no event loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskflow.app.app import configure as configure
    from taskflow.app.call import Call as Call
    from taskflow.app.context import JobContext as JobContext, current_job as current_job
    from taskflow.app.cron import Cron as Cron, Every as Every
    from taskflow.app.handle import ErrorInfo as ErrorInfo, JobHandle as JobHandle, JobInfo as JobInfo
    from taskflow.app.job import Job as Job, SyncJob as SyncJob, job as job
    from taskflow.app.middleware import EnqueueCall as EnqueueCall, EnqueueNext as EnqueueNext, Middleware as Middleware, RunNext as RunNext
    from taskflow.app.options import EnqueueOptions as EnqueueOptions
    from taskflow.app.portal import run_sync as run_sync
    from taskflow.app.schedules import ScheduleInfo as ScheduleInfo, schedules as schedules
    from taskflow.app.sending import enqueue as enqueue, enqueue_sync as enqueue_sync
    from taskflow.app.signals import Cancel as Cancel, Discard as Discard, Retry as Retry, Snooze as Snooze
    from taskflow.model.backoff import Backoff as Backoff
    from taskflow.model.errors import (
        BrokerError as BrokerError,
        BrokerRefused as BrokerRefused,
        BrokerUnavailable as BrokerUnavailable,
        BrokerUrlError as BrokerUrlError,
        CodecError as CodecError,
        ConfigurationError as ConfigurationError,
        DeclarationError as DeclarationError,
        DecodeError as DecodeError,
        DriverMissing as DriverMissing,
        EncodeError as EncodeError,
        EnqueueFailed as EnqueueFailed,
        InvalidJobId as InvalidJobId,
        JobCancelled as JobCancelled,
        JobError as JobError,
        JobFailed as JobFailed,
        KeyConflict as KeyConflict,
        ResultExpired as ResultExpired,
        ScheduleConflict as ScheduleConflict,
        StoreFull as StoreFull,
        TaskflowError as TaskflowError,
        TooLarge as TooLarge,
        UnknownJob as UnknownJob,
        UnknownSchedule as UnknownSchedule,
    )
    from taskflow.model.progress import Progress as Progress
    from taskflow.model.record import Status as Status
    from taskflow.model.verdict import RunError as RunError, Verdict as Verdict
    from taskflow.testing.jobs import TaskflowJobs as TaskflowJobs
    from taskflow.worker.worker import Worker as Worker, worker_lifespan as worker_lifespan

_HOMES = {
    "taskflow.app.app": "configure",
    "taskflow.app.call": "Call",
    "taskflow.app.context": "JobContext current_job",
    "taskflow.app.cron": "Cron Every",
    "taskflow.app.handle": "ErrorInfo JobHandle JobInfo",
    "taskflow.app.job": "Job SyncJob job",
    "taskflow.app.middleware": "EnqueueCall EnqueueNext Middleware RunNext",
    "taskflow.app.options": "EnqueueOptions",
    "taskflow.app.portal": "run_sync",
    "taskflow.app.schedules": "ScheduleInfo schedules",
    "taskflow.app.sending": "enqueue enqueue_sync",
    "taskflow.app.signals": "Cancel Discard Retry Snooze",
    "taskflow.model.backoff": "Backoff",
    "taskflow.model.errors": (
        "BrokerError BrokerRefused BrokerUnavailable BrokerUrlError CodecError ConfigurationError DeclarationError DecodeError "
        "DriverMissing EncodeError EnqueueFailed InvalidJobId JobCancelled JobError JobFailed KeyConflict ResultExpired ScheduleConflict "
        "StoreFull TaskflowError TooLarge UnknownJob UnknownSchedule"
    ),
    "taskflow.model.record": "Progress Status",
    "taskflow.model.verdict": "RunError Verdict",
    "taskflow.testing.jobs": "TaskflowJobs",
    "taskflow.worker.worker": "Worker worker_lifespan",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]  # the names are listed once, above


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'taskflow' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
