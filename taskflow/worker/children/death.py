"""Errors of a child process that did not finish a run."""

from __future__ import annotations

from taskflow.model.errors import TaskflowError


class ChildFailed(TaskflowError):
    """The child did not start, or did not find the job.

    It is not an error of the job, so `retry_on` does not apply: the run is a failed attempt, and is retried with the job's back-off until
    its last attempt. It is not a crash like a lost lease either, because the worker lives, and knows and reports the cause. So a job that
    kills every child uses up its attempts, and its history shows the causes.
    """

    __module__ = "taskflow"  # the name that a job's record shows


class CannotStart(ChildFailed):
    """The system has no descriptor, process or thread left. This may pass, and no code of the application has run."""

    __module__ = "taskflow"


class ChildDied(ChildFailed):
    """The child died during a run, for example of a segfault, of `os._exit()` or for lack of memory."""

    __module__ = "taskflow"
