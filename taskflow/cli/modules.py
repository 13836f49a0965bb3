"""Imports the modules that the user names, and explains errors in the user's terms, without taskflow's own frames."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from taskflow.cli.exit_codes import Exit
from taskflow.model.errors import ConfigurationError, TaskflowError
from taskflow.model.printable import indented, message, nearest
from taskflow.worker.run_errors import failure_of

_LOOPS: Final = f"{Path(asyncio.__file__).parent}{os.sep}"
_PYTHONS: Final = f"{Path(os.__file__).parent}{os.sep}"
_OURS: Final = f"{Path(__file__).parents[1]}{os.sep}"


_NOT_READY: Final = "django.core.exceptions.AppRegistryNotReady"
_NOT_CONFIGURED: Final = "django.core.exceptions.ImproperlyConfigured"
_SET_UP_DJANGO: Final = (
    'taskflow: Django is not set up: add "taskflow.django" to INSTALLED_APPS and run `python manage.py taskflow worker`, or set '
    "DJANGO_SETTINGS_MODULE and name the module taskflow.django.setup before {}"
)


class TargetFailed(SystemExit):
    """A module could not be imported. The message for the user has already been printed. The exit code is 2, as for a wrong option."""

    def __init__(self) -> None:
        super().__init__(int(Exit.USAGE))


def import_targets(names: Iterable[str], *, all_submodules: bool = False) -> None:
    """Import the modules, with the current folder first on sys.path. If an import fails, print its traceback and raise TargetFailed."""
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    for name in names:
        module = _import(name)
        if all_submodules:
            for submodule in _submodules(module):
                _import(submodule)


def import_jobs(registry: Registry, arguments: argparse.Namespace) -> None:
    """Import the modules that a command names. Raises TargetFailed, or ConfigurationError if they declare no job."""
    import_targets(arguments.modules, all_submodules=arguments.all_submodules)
    if not len(registry):
        packages = [name for name in arguments.modules if hasattr(sys.modules.get(name), "__path__") and not arguments.all_submodules]
        hint = f"; {packages[0]} is a package: name its modules, or add --all-submodules" if packages else ""
        raise ConfigurationError(f"no jobs in {', '.join(arguments.modules)}: decorate a function with @job{hint}")


def _import(name: str) -> ModuleType:
    try:
        with default_app().importing(name):
            if not name or name.startswith("."):  # importlib would ask which package the name is relative to
                raise ModuleNotFoundError(name=name)
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _shown(name, error) from error  # the module exists, but a module that it imports does not
        print(f"taskflow: found no module {name!r}{_hint(name)}", file=sys.stderr)
        raise TargetFailed from error
    except BaseException as error:  # includes SystemExit and exception classes that the module defines
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _shown(name, error) from error


def _shown(name: str, error: BaseException) -> TargetFailed:
    print_users(error)
    failure = failure_of(error, attempt=1)
    why = f"{failure.type.rpartition('.')[2]}: {failure.message}"
    print(f"taskflow: {name} cannot be imported: {message(why)}", file=sys.stderr)
    if failure.type == _NOT_READY or (failure.type == _NOT_CONFIGURED and "settings are not configured" in failure.message):
        print(_SET_UP_DJANGO.format(name), file=sys.stderr)
    return TargetFailed()


def _hint(name: str) -> str:
    if name.endswith(".py") or "/" in name:
        return f"; write the module's name with dots: {name.removesuffix('.py').strip('./').replace('/', '.')}"
    here = Path.cwd()
    files = [file.relative_to(here) for pattern in ("*.py", "*/*.py", "*/*/*.py") for file in here.glob(pattern)]
    near = nearest(name, [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files])
    return f"; did you mean {near}?" if near else f"; looked in {here} and where Python is installed"


def _submodules(package: ModuleType) -> Iterator[str]:
    import pkgutil  # imported here, because most workers do not need it

    def fail(name: str) -> None:
        raise _shown(name, sys.exception() or ImportError(name))

    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}.", onerror=fail):
        if not found.name.endswith(".__main__"):
            yield found.name


def print_users(error: BaseException) -> None:
    """Print the error and its causes to stderr, without the frames of taskflow and asyncio."""
    try:
        shown = "".join(_of_user(traceback.TracebackException.from_exception(error)).format())
    except Exception:  # formatting runs the error's own code, which may raise
        shown = failure_of(error, attempt=1).traceback
    print(indented(shown), file=sys.stderr)


def is_ours(error: BaseException) -> bool:
    """Return True for a TaskflowError raised in taskflow's code, or an error whose frames all belong to taskflow or Python."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, TaskflowError) and files and _is_machinery(files[-1]):
        return True
    of_python = ("<frozen ", _PYTHONS)
    return bool(files) and all(_is_machinery(file) or (file.startswith(of_python) and "-packages" not in file) for file in files)


def _of_user(error: traceback.TracebackException) -> traceback.TracebackException:
    error.stack = traceback.StackSummary.from_list([frame for frame in error.stack if not _is_machinery(frame.filename)])
    for cause in (error.__cause__, error.__context__, *(error.exceptions or ())):
        if cause is not None:
            _of_user(cause)
    return error


def _is_machinery(file: str) -> bool:
    return file.startswith((_OURS, _LOOPS, "<frozen importlib", "uvloop/")) or file in (importlib.__file__, contextlib.__file__)
