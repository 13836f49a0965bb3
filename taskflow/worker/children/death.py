"""A child process could not do its part for a run."""

from __future__ import annotations

from taskflow.model.errors import TaskflowError


class ChildFailed(TaskflowError):
    """It did not get ready, or does not find the job.

    It is no error of the job's own, so that `retry_on`, which names those, is not asked: the run is a failed attempt that is retried, with
    the job's back-off, up to its last. It is no *crash* either, as the loss of a lease is: the worker lives, knows the cause, and reports
    it; a job that kills every child that it is given must come to its last attempt, and have the causes in its history.
    """

    __module__ = "taskflow"  # a job's errors have their type by name


class CannotStart(ChildFailed):
    """The system has no descriptor, no process or no thread left for it. That may pass, and no code of the application has run."""

    __module__ = "taskflow"


class ChildDied(ChildFailed):
    """It has died in the middle of a run: of a segfault, of `os._exit()`, for want of memory."""

    __module__ = "taskflow"
