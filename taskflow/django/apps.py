"""The app that INSTALLED_APPS names as "taskflow.django", and the closing of old database connections around runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.apps import AppConfig
from django.core.signals import setting_changed
from django.db import connections

from taskflow.app.app import default_app
from taskflow.app.context import JobContext
from taskflow.app.middleware import Middleware


class TaskflowConfig(AppConfig):
    """Sets taskflow up in each process of a project: its broker, and the database connections of its runs."""

    name = "taskflow.django"
    label = "taskflow"

    def ready(self) -> None:
        default_app().integrate(middleware=[CloseConnections()])
        self._read_tasks(setting="TASKS")
        setting_changed.connect(self._read_tasks, dispatch_uid="taskflow")

    def _read_tasks(self, *, setting: str, **kwargs: Any) -> None:
        with suppress(ImportError):  # this version of Django has no Tasks
            from taskflow.django.backend import apply_settings

            if setting == "TASKS":  # tests change it
                apply_settings()


class CloseConnections(Middleware):
    """Closes the connections of a run's thread that are too old or unusable, before and after the run. For an async job, this is the thread
    in which Django's async methods use their connections. A connection in a transaction stays open."""

    def around(self, context: JobContext) -> AbstractContextManager[Any]:
        return _Closing()


class _Closing(AbstractContextManager[None]):
    """A context manager for plain jobs and for async ones."""

    _kept: Sequence[Any] = ()

    def __enter__(self) -> None:
        if default_app().ignores_connections:  # a test's job may run in the thread of the test, and use its connections
            self._kept = [each for each in connections.all(initialized_only=True) if each.connection is not None]
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        for each in connections.all(initialized_only=True):
            if not each.in_atomic_block and each not in self._kept:
                each.close_if_unusable_or_obsolete()

    async def __aenter__(self) -> None:
        await sync_to_async(self.__enter__)()

    async def __aexit__(self, *error: object) -> None:
        await sync_to_async(self.__exit__)()
