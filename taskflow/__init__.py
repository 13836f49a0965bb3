"""taskflow: background jobs for Python. Start with `from taskflow import job`, and see the README.

Names are loaded when first used, so importing taskflow loads no driver, no web framework and no event loop.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # importing typing takes 5 ms, during which Python itself would handle the command's Ctrl-C, or lose it
if TYPE_CHECKING:
    from taskflow.app.app import configure as configure
    from taskflow.app.around import depends as depends
    from taskflow.app.bulk_actions import ActionResult as ActionResult, JobSelection as JobSelection
    from taskflow.app.connections import RunsStatement as RunsStatement
    from taskflow.app.context import (
        Cancel as Cancel,
        Discard as Discard,
        JobContext as JobContext,
        RateLimited as RateLimited,
        Retry as Retry,
        Snooze as Snooze,
        current_job as current_job,
    )
    from taskflow.app.declared_limits import Concurrency as Concurrency, Limit as Limit, Rate as Rate
    from taskflow.app.declared_schedules import Cron as Cron, Every as Every
    from taskflow.app.decorator import job as job, preset as preset
    from taskflow.app.flow import Call as Call, Flow as Flow, Group as Group, group as group
    from taskflow.app.flow_handle import FlowHandle as FlowHandle, SentFlow as SentFlow
    from taskflow.app.handle import JobHandle as JobHandle
    from taskflow.app.job import Job as Job, NamedJob as NamedJob, SyncJob as SyncJob, named as named, send as send, send_sync as send_sync
    from taskflow.app.job_info import ErrorInfo as ErrorInfo, JobInfo as JobInfo
    from taskflow.app.limits import limits as limits
    from taskflow.app.middleware import EnqueueCall as EnqueueCall, EnqueueNext as EnqueueNext, Middleware as Middleware, RunNext as RunNext
    from taskflow.app.operate import FailureGroup as FailureGroup, JobPage as JobPage, WorkerInfo as WorkerInfo, operate as operate
    from taskflow.app.options import DefaultOptions as DefaultOptions, EnqueueOptions as EnqueueOptions
    from taskflow.app.portal import run_sync as run_sync
    from taskflow.app.schedules import ScheduleInfo as ScheduleInfo, schedules as schedules
    from taskflow.app.sending import enqueue as enqueue, enqueue_sync as enqueue_sync
    from taskflow.broker.admin import LimitedJob as LimitedJob, LimitInfo as LimitInfo, QueueInfo as QueueInfo
    from taskflow.model.batch import Batch as Batch, Failure as Failure
    from taskflow.model.codec.compiler import Secret as Secret
    from taskflow.model.codec.untyped import register_type as register_type
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
        JobStopping as JobStopping,
        KeyConflict as KeyConflict,
        LeaseLost as LeaseLost,
        ResultExpired as ResultExpired,
        ScheduleConflict as ScheduleConflict,
        StoreFull as StoreFull,
        TaskflowError as TaskflowError,
        TooLarge as TooLarge,
        UnknownJob as UnknownJob,
        UnknownSchedule as UnknownSchedule,
        WrongBatchResult as WrongBatchResult,
        WrongConnection as WrongConnection,
    )
    from taskflow.model.record import Status as Status
    from taskflow.model.rules import Backoff as Backoff
    from taskflow.model.verdict import (
        Cancelled as Cancelled,
        Completed as Completed,
        Discarded as Discarded,
        Failed as Failed,
        HandedBack as HandedBack,
        Parked as Parked,
        Progress as Progress,
        Retried as Retried,
        RunEnding as RunEnding,
        RunError as RunError,
        Snoozed as Snoozed,
        Succeeded as Succeeded,
        Verdict as Verdict,
    )
    from taskflow.testing.jobs import TaskflowJobs as TaskflowJobs, jobs_in_memory as jobs_in_memory
    from taskflow.worker.worker import Worker as Worker, worker_lifespan as worker_lifespan

_HOMES = {
    "taskflow.app.app": "configure",
    "taskflow.app.around": "depends",
    "taskflow.app.bulk_actions": "ActionResult JobSelection",
    "taskflow.app.connections": "RunsStatement",
    "taskflow.app.flow": "Call Flow Group group",
    "taskflow.app.context": "Cancel Discard JobContext RateLimited Retry Snooze current_job",
    "taskflow.app.declared_schedules": "Cron Every",
    "taskflow.app.decorator": "job preset",
    "taskflow.app.flow_handle": "FlowHandle SentFlow",
    "taskflow.app.handle": "JobHandle",
    "taskflow.app.job": "Job NamedJob SyncJob named send send_sync",
    "taskflow.app.job_info": "ErrorInfo JobInfo",
    "taskflow.app.declared_limits": "Concurrency Limit Rate",
    "taskflow.app.limits": "limits",
    "taskflow.app.middleware": "EnqueueCall EnqueueNext Middleware RunNext",
    "taskflow.app.operate": "FailureGroup JobPage WorkerInfo operate",
    "taskflow.app.options": "DefaultOptions EnqueueOptions",
    "taskflow.app.portal": "run_sync",
    "taskflow.app.schedules": "ScheduleInfo schedules",
    "taskflow.app.sending": "enqueue enqueue_sync",
    "taskflow.broker.admin": "LimitInfo LimitedJob QueueInfo",
    "taskflow.model.batch": "Batch Failure",
    "taskflow.model.rules": "Backoff",
    "taskflow.model.codec.untyped": "register_type",
    "taskflow.model.codec.compiler": "Secret",
    "taskflow.model.errors": (
        "BrokerError BrokerRefused BrokerUnavailable BrokerUrlError CodecError ConfigurationError DeclarationError DecodeError "
        "DriverMissing EncodeError EnqueueFailed InvalidJobId JobCancelled JobError JobFailed JobStopping KeyConflict LeaseLost "
        "ResultExpired ScheduleConflict StoreFull TaskflowError TooLarge UnknownJob UnknownSchedule WrongBatchResult "
        "WrongConnection"
    ),
    "taskflow.model.record": "Status",
    "taskflow.model.verdict": (
        "Cancelled Completed Discarded Failed HandedBack Parked Progress Retried RunEnding RunError Snoozed Succeeded Verdict"
    ),
    "taskflow.testing.jobs": "TaskflowJobs jobs_in_memory",
    "taskflow.worker.worker": "Worker worker_lifespan",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]  # the names are listed once, above


if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any name

    def __getattr__(name):
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'taskflow' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return list(__all__)
