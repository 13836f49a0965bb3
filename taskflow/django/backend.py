"""The backend for Django's Tasks, its options, and the broker that they name."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules, import_string

from taskflow.app.app import default_app
from taskflow.app.flow import Call
from taskflow.app.handle import JobHandle
from taskflow.app.job_info import JobInfo
from taskflow.app.portal import block_on, refuse_inside_a_loop
from taskflow.app.sending import send_call, send_call_sync
from taskflow.broker.url import masked
from taskflow.django.task_jobs import BACKEND, RUN_AFTER, base, job_of, new_result, normalized, result_of, signals, task_of
from taskflow.model.errors import ConfigurationError, InvalidJobId

_PACKAGE: Final = base.__name__.rpartition(".")[0]
_Base: Any = import_module(f"{_PACKAGE}.backends.base").BaseTaskBackend
_DoesNotExist: Any = import_module(f"{_PACKAGE}.exceptions").TaskResultDoesNotExist

_LABEL: Final = "taskflow"
_OPTIONS: Final = ("broker", "transaction", "database")
_TRANSACTIONS: Final = ("now", "on_commit", "join")


class TaskflowBackend(_Base):
    """Runs Django's tasks as taskflow's jobs: ``TASKS = {"default": {"BACKEND": "taskflow.django.TaskflowBackend"}}``.

    It takes these ``OPTIONS``:

    `broker`       the broker's URL (default: the usual setting, for example ``TASKFLOW_BROKER``)
    `transaction`  "now" (default) sends at once; "on_commit" sends once the open transaction has committed; "join" makes the job part of
                   the open transaction, which must be in the broker's database
    `database`     the alias of the database with that transaction (default "default")

    Raises ImproperlyConfigured for invalid options.
    """

    supports_defer = supports_async_task = supports_get_result = supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        where = f'the OPTIONS of TASKS["{alias}"]'
        for name in self.options:
            if name not in _OPTIONS:
                raise ImproperlyConfigured(f"{where} have an unknown option {name!r}: expected {', '.join(_OPTIONS)}")
        self.transaction: str = self.options.get("transaction", "now")
        self.database: str = self.options.get("database", "default")
        if self.transaction not in _TRANSACTIONS:
            raise ImproperlyConfigured(f'{where} have "transaction": {self.transaction!r}: expected {", ".join(_TRANSACTIONS)}')
        if self.database not in settings.DATABASES:
            raise ImproperlyConfigured(f'{where} have "database": {self.database!r}, which DATABASES does not have')

    def validate_task(self, task: Any) -> None:
        """Check a task, and declare its job. Raises InvalidTask if the backend cannot run it."""
        super().validate_task(task)
        job_of(task)

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Send a task, and return its TaskResult. With "on_commit", its `enqueued_at` is None until the transaction has committed.

        Raises InvalidTask for a task that does not fit the backend, and TypeError for arguments that cannot be converted to JSON.
        Raises RuntimeError inside a running event loop, and BrokerUnavailable if the broker does not answer in time.
        """
        refuse_inside_a_loop("enqueue()", "await aenqueue()")
        call, result = self._call(task, args, kwargs)
        if self.transaction == "on_commit":
            sent_at = result.enqueued_at
            object.__setattr__(result, "enqueued_at", None)
            transaction.on_commit(partial(self._send, call, result, sent_at=sent_at), using=self.database)
        elif self.transaction == "join":
            self.check_join()
            connection: Any = connections[self.database]
            is_open = connection.in_atomic_block or not connection.get_autocommit()
            with nullcontext() if is_open else transaction.atomic(using=self.database):
                self._send(call, result, connection)
        else:
            self._send(call, result)
        return result

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Like `enqueue`, in a running event loop."""
        if self.transaction != "now":
            return await super().aenqueue(task, args, kwargs)  # Django runs this in the thread of its connections
        call, result = self._call(task, args, kwargs)
        await send_call(default_app(), call)
        await signals.task_enqueued.asend(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Return the TaskResult with this id. Raises TaskResultDoesNotExist if the broker does not know or no longer keeps the job, or if
        this process has not declared its task."""
        default_app().broker()  # loaded here and not in another thread, as in `send_call_sync`
        return _result(result_id, block_on(_read(result_id)))

    async def aget_result(self, result_id: str) -> Any:
        """Like `get_result`, without blocking the event loop."""
        return _result(result_id, await _read(result_id))

    def check(self, **kwargs: Any) -> list[Any]:
        """Return the problems with the settings, for `manage.py check`."""
        if not apps.is_installed("taskflow.django"):
            why = f'TASKS["{self.alias}"] uses taskflow, but its app is not installed.'
            return [checks.Error(why, "Add 'taskflow.django' to INSTALLED_APPS.", id=f"{_LABEL}.E001")]
        try:
            self.check_join()  # an app that is ready after this one may have configured another broker
        except ImproperlyConfigured as error:
            return [checks.Error(str(error), id=f"{_LABEL}.E002")]
        return []

    def check_join(self) -> None:
        """Raise ImproperlyConfigured if tasks join transactions but no broker is configured, or the broker is in another database."""
        app = default_app()
        if self.transaction != "join" or app.ignores_connections:
            return
        if app.settings.broker is None:
            raise ImproperlyConfigured(
                f'TASKS["{self.alias}"] has "transaction": "join", but no broker is configured. Add "broker", the URL of the database '
                f'"{self.database}", to its OPTIONS, or set TASKFLOW_BROKER. An app that calls configure(broker=...) in its ready() '
                "must come before taskflow.django in INSTALLED_APPS"
            )
        if (why := _difference(app.broker_url(), connections[self.database])) is not None:
            raise ImproperlyConfigured(
                f'TASKS["{self.alias}"] has "transaction": "join", but the broker {masked(app.broker_url())} is not in the database '
                f'"{self.database}", which is {why}. Use the URL of this database as the broker, or "transaction": "on_commit"'
            )

    def _call(self, task: Any, args: Any, kwargs: Any) -> tuple[Call[Any], Any]:
        self.validate_task(task)
        options: dict[str, Any] = {"queue": task.queue_name, "priority": task.priority, "headers": {BACKEND: self.alias}}
        if (run_after := task.run_after) is not None:
            options["headers"][RUN_AFTER] = run_after.isoformat()
            options["at"] = run_after if timezone.is_aware(run_after) else timezone.make_aware(run_after)
        if "max_attempts" not in default_app().settings.defaults.options:
            options["max_attempts"] = 1  # Django's own backends do not retry
        args, kwargs = normalized(args), normalized(kwargs)
        call = job_of(task).options(**options).bind(args, kwargs)
        return call, new_result(task, call.id, args, kwargs)

    def _send(self, call: Call[Any], result: Any, connection: Any = None, *, sent_at: Any = None) -> None:
        send_call_sync(default_app(), call, connection)
        if sent_at is not None:
            object.__setattr__(result, "enqueued_at", sent_at)
        signals.task_enqueued.send(type(self), task_result=result)


async def _read(result_id: str) -> JobInfo | None:
    with suppress(InvalidJobId):
        return await JobHandle.of(result_id).info()
    return None


def _result(result_id: str, info: JobInfo | None) -> Any:
    if info is None:
        raise _DoesNotExist(result_id)
    if default_app().registry.get(info.job) is None:  # a name from the store is never imported, so import all apps' `tasks`
        autodiscover_modules("tasks")
    known = default_app().registry.get(info.job)
    if known is None or (task := task_of(known)) is None:
        raise _DoesNotExist(f"{result_id} is the job {info.job}, which is not a task that this process has declared")
    return result_of(info, task)


# --- settings --------------------------------------------------------------------------------------------------------


def apply_settings() -> None:
    """Use the broker that TASKS names, unless `configure()` names one. Raises ImproperlyConfigured for invalid settings."""
    ours = []
    for alias, params in getattr(settings, "TASKS", {}).items():
        with suppress(ImportError, TypeError):  # Django reports this where that backend is used
            if issubclass(kind := import_string(params["BACKEND"]), TaskflowBackend):
                ours.append(kind(alias, params))
    brokers = [*dict.fromkeys(each.options["broker"] for each in ours if each.options.get("broker"))]
    if len(brokers) > 1:
        named = " and ".join(map(masked, brokers))
        raise ImproperlyConfigured(f"TASKS names the brokers {named}, but a process has only one: separate tasks by their queues instead")
    app = default_app()
    try:
        app.integrate(broker=brokers[0] if brokers else None)
        if app.settings.broker is not None:
            app.broker()  # checks the URL
    except ConfigurationError as error:
        raise ImproperlyConfigured(f"TASKS: {error}") from error
    for each in ours:
        each.check_join()


def _difference(url: str, connection: Any) -> str | None:
    """Describe the connection's database if it isn't the one in the broker's URL. Return None if it is, or if only the server knows."""
    parts, alias = urlsplit(url), connection.settings_dict
    scheme = "postgresql" if parts.scheme == "postgres" else parts.scheme
    name, its_name = unquote(parts.path.removeprefix("/")), str(alias["NAME"] or "")
    if scheme != connection.vendor or scheme not in ("sqlite", "postgresql"):
        return str(connection.vendor)
    if scheme == "sqlite":
        return None if Path(its_name).resolve() == Path(name).resolve() else its_name
    if "service" in alias.get("OPTIONS", {}) or "," in parts.netloc:  # unknown here: the first send compares the actual databases
        return None
    host, its_host = (_local_or(unquote(given or "")) for given in (parts.hostname, alias["HOST"]))
    is_same = (name, host, parts.port or 5432) == (its_name, its_host, int(alias["PORT"] or 5432))
    return None if is_same else f"{its_name} at {its_host}:{alias['PORT'] or 5432}"


def _local_or(host: str) -> str:
    return "localhost" if host in ("", "127.0.0.1", "::1") or host.startswith("/") else host
