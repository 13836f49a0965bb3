"""The app that INSTALLED_APPS names as "taskflow.django", and the middleware that closes old database connections before and after runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.apps import AppConfig, apps
from django.apps.registry import Apps
from django.core.signals import setting_changed
from django.db import connections, router
from django.db.models.signals import post_migrate

from taskflow.app.app import default_app
from taskflow.app.context import JobContext
from taskflow.app.middleware import Middleware


class TaskflowConfig(AppConfig):
    """Sets up taskflow in each process of a project: the broker, and the closing of old database connections around runs."""

    name = "taskflow.django"
    label = "taskflow"

    def ready(self) -> None:
        default_app().integrate(middleware=[CloseConnections()])
        self._read_tasks(setting="TASKS")
        setting_changed.connect(self._read_tasks, dispatch_uid="taskflow")
        if apps.is_installed("django.contrib.auth"):
            post_migrate.connect(_create_permissions, sender=apps.get_app_config("auth"), dispatch_uid="taskflow")

    def _read_tasks(self, *, setting: str, **kwargs: Any) -> None:
        with suppress(ImportError):  # this version of Django has no Tasks
            from taskflow.django.backend import apply_settings

            if setting == "TASKS":  # tests change this setting
                apply_settings()


PERMISSIONS = {"act": "Can act on jobs, queues and schedules", "see_arguments": "Can see arguments and results of jobs"}


def _create_permissions(*, using: str, apps: Apps = apps, **kwargs: Any) -> None:
    """Create the dashboard's permissions. They have a content type but no model, because jobs aren't in Django's tables."""
    try:
        permission, content_type = apps.get_model("auth", "Permission"), apps.get_model("contenttypes", "ContentType")
    except LookupError:  # not migrated yet
        return
    if router.allow_migrate_model(using, permission):
        jobs, _ = content_type.objects.using(using).get_or_create(app_label="taskflow", model="job")
        for name, text in PERMISSIONS.items():
            permission.objects.using(using).get_or_create(content_type=jobs, codename=name, defaults={"name": text})


class CloseConnections(Middleware):
    """Closes the connections of a run's thread that are too old or unusable, before and after the run. For an async job, this is the thread
    in which Django's async methods use their connections. A connection in a transaction stays open."""

    def around(self, context: JobContext) -> AbstractContextManager[Any]:
        return _Closing()


class _Closing(AbstractContextManager[None]):
    """A context manager for both plain and async jobs."""

    _kept: Sequence[Any] = ()

    def __enter__(self) -> None:
        if default_app().ignores_connections:  # a test's job may run in the test's thread, and use its connections
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
