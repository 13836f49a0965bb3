"""Merges the settings from all sources. Precedence: flags, then configure(), then TASKFLOW_* in
the environment, then [tool.taskflow] in pyproject.toml."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import msgspec

from taskflow.app.middleware import Middleware
from taskflow.broker.url import masked
from taskflow.model.errors import ConfigurationError

DEFAULT_BROKER: Final = "sqlite:///taskflow.db"

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a process.

    `broker`           the broker's URL; None means the default SQLite file, whose path is logged once
    `enqueue_timeout`  seconds after which `delay()` fails if the store does not answer
    `max_payload`      the maximum size of a call's arguments, and of a result, in bytes
    `middleware`       the middleware, outermost first
    `lifespan`         a function that returns an async context manager, entered once per worker; the value that it yields is `ctx.state`
    """

    broker: str | None = None
    enqueue_timeout: float = 5.0
    max_payload: int = 1 << 20
    middleware: tuple[Middleware, ...] = ()
    lifespan: Lifespan | None = None

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the struct's default repr would show the broker's password
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        return list((shown | {"broker": None if self.broker is None else masked(self.broker)}).items())

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


# The settings that the environment and pyproject.toml may contain. Numbers have a type and a minimum.
TEXTUAL: Final = ("broker", "enqueue_timeout", "max_payload")
_NUMBERS: Final[Mapping[str, tuple[type[int] | type[float], int]]] = {"enqueue_timeout": (float, 0), "max_payload": (int, 1)}


def layered(configured: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """Return the current settings, merged from all sources. Raises
    ConfigurationError for an invalid value, naming its source and the setting."""
    environ = os.environ if environ is None else environ
    variables = {name: f"TASKFLOW_{name.upper()}" for name in TEXTUAL}
    given = {name: _read(variable, name, text) for name, variable in variables.items() if (text := environ.get(variable))}
    layers = (_of_pyproject(folder or Path.cwd()), given, configured)
    merged = {name: value for layer in layers for name, value in layer.items() if value is not None}
    merged["middleware"] = tuple(merged.get("middleware", ()))
    return Settings(**merged)


def check_configured(given: Mapping[str, Any]) -> None:
    """Check the values given to configure(). Raises ConfigurationError for an invalid value, naming the setting."""
    middleware = given.get("middleware")
    if middleware is not None:
        if not isinstance(middleware, Sequence):
            raise ConfigurationError(f"configure(middleware={middleware!r}): expected a list of Middleware instances")
        for layer in middleware:
            if not isinstance(layer, Middleware):
                raise ConfigurationError(
                    f"configure(middleware=[... {layer!r} ...]): expected instances of subclasses of taskflow.Middleware"
                )
    for name in _NUMBERS:
        if given.get(name) is not None:
            _check_number(f"configure({name}={given[name]!r})", name, given[name])
    if given.get("broker") is not None:
        _check_url("configure(broker=...)", given["broker"])
    if given.get("lifespan") is not None and not callable(given["lifespan"]):
        raise ConfigurationError(f"configure(lifespan={given['lifespan']!r}): expected a function that returns an async context manager")


def _check_url(where: str, value: object) -> None:
    """Check that the value is a string and not empty. The broker's module checks the URL itself."""
    if not isinstance(value, str) or not value:
        found = "an empty text" if value == "" else type(value).__name__  # the value may contain a password
        raise ConfigurationError(f"{where}: expected a URL, for example {DEFAULT_BROKER!r}, got {found}")


def _check_number(where: str, name: str, value: Any) -> None:
    kind, least = _NUMBERS[name]
    is_one = isinstance(value, int | kind) and not isinstance(value, bool)
    if not is_one or not value >= least:  # false for NaN, too
        raise ConfigurationError(f"{where}: expected {'a whole number' if kind is int else 'a number'}, {least} or more")


def _of_pyproject(folder: Path) -> dict[str, Any]:
    """Return the [tool.taskflow] table of the pyproject.toml in this folder, or in the nearest parent that has one."""
    for candidate in (folder, *folder.parents):
        file = candidate / "pyproject.toml"
        if file.is_file():
            return _of_file(file)
    return {}


def _of_file(file: Path) -> dict[str, Any]:
    import tomllib  # imported here, because most folders have no pyproject.toml

    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    table = tool.get("taskflow", {}) if isinstance(tool, dict) else tool
    if not isinstance(table, dict):
        raise ConfigurationError(f"{file}: [tool.taskflow] must be a table, got {table!r}")
    for name in table:
        if name not in TEXTUAL:
            raise ConfigurationError(f"[tool.taskflow] in {file} has an unknown setting {name!r}; settings are {', '.join(TEXTUAL)}")
    return {name: _read(f"{name} in [tool.taskflow] of {file}", name, value) for name, value in table.items()}


def _read(where: str, name: str, given: object) -> Any:
    """Convert and check one setting. The environment holds text; pyproject.toml may hold numbers."""
    if name not in _NUMBERS:
        _check_url(where, given)
        return given
    try:
        value = _NUMBERS[name][0](str(given))
    except ValueError:
        value = None
    _check_number(f"{where} is {given!r}", name, value)
    return value
