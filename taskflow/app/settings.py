"""Merges the settings from all sources. Precedence, highest first: flags, configure(), a framework's settings, TASKFLOW_* in the
environment, [tool.taskflow] in pyproject.toml."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from taskflow.app.middleware import Middleware, Telemetry, check_middleware
from taskflow.app.options import default_options
from taskflow.app.pyproject import check_names, project_table
from taskflow.broker.url import masked
from taskflow.model.errors import ConfigurationError
from taskflow.model.job_schema import MAX_PAYLOAD

if TYPE_CHECKING:
    from taskflow.app.events import Subscriber

DEFAULT_BROKER: Final = "sqlite:///taskflow.db"

LifespanFactory = Callable[[], AbstractAsyncContextManager[Any]]
ChildLifespanFactory = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]


class Defaults(msgspec.Struct, frozen=True):
    """The checked default options of jobs: fields of `Options` for calls, and of `Policy` for workers."""

    options: dict[str, Any] = {}
    policy: dict[str, Any] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a process, which `configure` describes. If `broker` is None, the default SQLite file is used."""

    broker: str | None = None
    enqueue_timeout: float = 5.0
    max_payload: int = 1 << 20
    middleware: tuple[Middleware, ...] = ()
    lifespan: LifespanFactory | None = None
    subscribers: tuple[Subscriber, ...] = ()
    telemetry: tuple[Telemetry, ...] = ()
    child_initializer: Callable[[], object] | None = None
    child_lifespan: ChildLifespanFactory | None = None
    defaults: Defaults = Defaults()

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the struct's default repr would show the broker's password
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        return list((shown | {"broker": None if self.broker is None else masked(self.broker)}).items())

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


# The settings that may come from the environment or pyproject.toml.
TEXTUAL: Final = ("broker", "enqueue_timeout", "max_payload")
_FUNCTIONS: Final[Mapping[str, str]] = {
    "lifespan": "a function that returns an async context manager",
    "child_initializer": "a function without parameters",
    "child_lifespan": "a function that returns a context manager, or an async one",
}
_OF_PYPROJECT: Final = (*TEXTUAL, "defaults", "worker")  # `taskflow worker` reads "worker"
_NUMBERS: Final[Mapping[str, tuple[type[int] | type[float], int, float]]] = {  # each number's type, minimum and maximum
    "enqueue_timeout": (float, 0, inf),
    "max_payload": (int, 1, MAX_PAYLOAD),
}


def layered(configured: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """Return the current settings, merged from all sources. Raises ConfigurationError for an invalid value, naming its source."""
    environ = os.environ if environ is None else environ
    variables = {name: f"TASKFLOW_{name.upper()}" for name in TEXTUAL}
    given = {name: _read(variable, name, text) for name, variable in variables.items() if (text := environ.get(variable))}
    project = {}
    if (found := project_table(folder or Path.cwd())) is not None:
        file, table = found
        check_names(table, "tool.taskflow", file, _OF_PYPROJECT)
        project = {name: _read(f"{name} in [tool.taskflow] of {file}", name, value) for name, value in table.items() if name != "worker"}
    layers = (project, given, configured)
    merged = {name: value for layer in layers for name, value in layer.items() if value is not None}
    for name in ("middleware", "subscribers", "telemetry"):
        merged[name] = tuple(merged.get(name, ()))
    merged["middleware"] = (*merged["telemetry"], *merged["middleware"])
    merged["subscribers"] += tuple(each.on_event for each in merged["telemetry"] if type(each).on_event is not Telemetry.on_event)
    return Settings(**merged)


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check and return the settings given to configure(), without those that are None. Raises ConfigurationError for an invalid value,
    naming the setting."""
    settings = {name: value for name, value in given.items() if value is not None}
    for name, of_what in (("middleware", "Middleware instances"), ("subscribers", "functions"), ("telemetry", "Telemetry instances")):
        if not isinstance(settings.get(name, ()), Sequence):
            raise ConfigurationError(f"configure({name}={settings[name]!r}): expected a list of {of_what}")
    for layer in settings.get("middleware", ()):
        check_middleware(layer)
    for each in settings.get("telemetry", ()):
        if not isinstance(each, Telemetry):
            raise ConfigurationError(f"configure(telemetry=[... {each!r} ...]): expected an instance of a class in taskflow.telemetry")
    for subscriber in settings.get("subscribers", ()):
        if not callable(subscriber) or inspect.iscoroutinefunction(subscriber):
            raise ConfigurationError(f"configure(subscribers=[... {subscriber!r} ...]): expected plain functions that take an event")
    for name in _NUMBERS:
        if name in settings:
            _check_number(f"configure({name}={settings[name]!r})", name, settings[name])
    if "broker" in settings:
        _check_url("configure(broker=...)", settings["broker"])
    for name, expected in _FUNCTIONS.items():
        if name in settings and not callable(settings[name]):
            raise ConfigurationError(f"configure({name}={settings[name]!r}): expected {expected}")
    if inspect.iscoroutinefunction(settings.get("child_initializer")):
        raise ConfigurationError(f"configure(child_initializer={given['child_initializer']!r}): it is async; use child_lifespan= for that")
    if "defaults" in settings:
        settings["defaults"] = _defaults("configure(defaults=...)", settings["defaults"])
    return settings


def _defaults(where: str, given: object) -> Defaults:
    try:
        return Defaults(*default_options(given))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _check_url(where: str, value: object) -> None:
    """Raise ConfigurationError unless the value is a non-empty string. The broker's module checks the URL itself."""
    if not isinstance(value, str) or not value:
        found = "an empty string" if value == "" else type(value).__name__  # the value may contain a password
        raise ConfigurationError(f"{where}: expected a URL, for example {DEFAULT_BROKER!r}, got {found}")


def _check_number(where: str, name: str, value: Any) -> None:
    kind, least, most = _NUMBERS[name]
    is_one = isinstance(value, int | kind) and not isinstance(value, bool)
    if not is_one or not least <= value <= most:  # false for NaN, too
        allowed = f", {least} or more" if most == inf else f" from {least} to {most:,}"
        raise ConfigurationError(f"{where}: expected {'a whole number' if kind is int else 'a number'}{allowed}")


def _read(where: str, name: str, given: object) -> Any:
    """Convert and check one setting. The environment holds text; pyproject.toml may hold numbers, and a table of defaults."""
    if name == "defaults":
        return _defaults(where, given)
    if name not in _NUMBERS:
        _check_url(where, given)
        return given
    try:
        value = _NUMBERS[name][0](str(given))
    except ValueError:
        value = None
    _check_number(f"{where} is {given!r}", name, value)
    return value
