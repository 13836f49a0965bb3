"""Layer 6: taskflow in Django. Put "taskflow.django" into INSTALLED_APPS, and `TaskflowBackend` into TASKS."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Load the backend on first use: Django 5.2 has no Tasks without the package django-tasks."""
    if name == "TaskflowBackend":
        from taskflow.django.backend import TaskflowBackend

        return TaskflowBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
