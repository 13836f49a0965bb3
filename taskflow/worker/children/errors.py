"""The errors that are raised when a child process does not finish a run."""

from __future__ import annotations

from taskflow.model.errors import TaskflowError


class ChildFailed(TaskflowError):
    """A child process did not start or set itself up, did not find the job, or died.

    This is not an error in the job, so `retry_on` does not apply. The run counts as a failed attempt, and is retried with
    the job's back-off as long as attempts are left. Unlike a lost lease, it does not count as a crash, because the worker
    is alive and reports the cause. So a job that kills every child uses up its attempts, and its history shows the causes.
    """

    __module__ = "taskflow"  # the name that a job's record shows


class CannotStart(ChildFailed):
    """The system has no descriptors, processes or threads left. The shortage may pass, and no application code has run."""

    __module__ = "taskflow"


class ChildDied(ChildFailed):
    """The child died during a run, for example because of a segfault, a call to `os._exit()` or an out-of-memory kill."""

    __module__ = "taskflow"
