"""Errors of a child process that did not carry out a run."""

from __future__ import annotations

from taskflow.model.errors import TaskflowError


class ChildFailed(TaskflowError):
    """The child did not start, or does not find the job.

    It is not an error of the job, so `retry_on` does not apply: the run is a failed attempt, and is retried with the job's back-off until
    its last attempt. Nor is it a crash, as a lost lease is: the worker lives, knows the cause and reports it. A job that kills every child
    must use up its attempts and have the causes in its history.
    """

    __module__ = "taskflow"  # the name under which a job's record shows it


class CannotStart(ChildFailed):
    """The system has no descriptor, process or thread left. That may pass, and no code of the application has run."""

    __module__ = "taskflow"


class ChildDied(ChildFailed):
    """The child died during a run, for example of a segfault, of `os._exit()` or for lack of memory."""

    __module__ = "taskflow"
