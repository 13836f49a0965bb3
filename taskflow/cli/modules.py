"""Imports the modules that the user names, and explains errors in the user's terms."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from taskflow.cli.tracebacks import print_users
from taskflow.model.errors import ConfigurationError
from taskflow.model.printable import message, nearest
from taskflow.worker.run_errors import failure_of


class TargetFailed(Exception):
    """A module could not be imported. The message for the user has already been printed."""


def import_targets(names: Iterable[str], *, all_submodules: bool) -> None:
    """Import the modules, with the current folder first on sys.path. If an import fails, print its
    traceback without taskflow's frames and raise TargetFailed."""
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    for name in names:
        module = _import(name)
        if all_submodules:
            for submodule in _submodules(module):
                _import(submodule)


def require_jobs(registry: Registry, modules: Sequence[str], *, all_submodules: bool) -> None:
    """Raise ConfigurationError if the imported modules declare no job."""
    if not len(registry):
        packages = [] if all_submodules else [name for name in modules if hasattr(sys.modules.get(name), "__path__")]
        hint = f"; {packages[0]} is a package: name its modules, or add --all-submodules" if packages else ""
        raise ConfigurationError(f"{', '.join(modules)} declares no job: decorate a function with @job{hint}")


def _import(name: str) -> ModuleType:
    try:
        with default_app().importing(name):
            return importlib.import_module(_absolute(name))
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _shown(name, error) from error  # the module exists; one that it imports does not
        print(f"taskflow: found no module {name!r}{_hint(name)}", file=sys.stderr)
        raise TargetFailed(name) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # includes SystemExit, or an exception class of the module
        raise _shown(name, error) from error


def _absolute(name: str) -> str:
    if not name or name.startswith("."):  # importlib would ask which package the name is relative to
        raise ModuleNotFoundError(name=name)
    return name


def _shown(name: str, error: BaseException) -> TargetFailed:
    print_users(error)
    failure = failure_of(error, attempt=1)
    why = f"{failure.type.rpartition('.')[2]}: {failure.message}"
    print(f"taskflow: {name} cannot be imported: {message(why)}", file=sys.stderr)
    return TargetFailed(name)


def _hint(name: str) -> str:
    if name.endswith(".py") or "/" in name:
        return f"; write the module's name with dots: {name.removesuffix('.py').strip('./').replace('/', '.')}"
    near = nearest(name, _modules_here())
    return f"; did you mean {near}?" if near else f"; looked in {os.getcwd()} and where Python is installed"


def _modules_here() -> list[str]:
    """Return the dotted names of the Python files in the current folder and up to two levels below it."""
    here = Path.cwd()
    files = [file for pattern in ("*.py", "*/*.py", "*/*/*.py") for file in here.glob(pattern)]
    return [".".join(file.relative_to(here).with_suffix("").parts).removesuffix(".__init__") for file in files]


def _submodules(package: ModuleType) -> Iterator[str]:
    import pkgutil  # imported here, because most workers need none

    paths = getattr(package, "__path__", None)
    if paths is not None:
        for found in pkgutil.walk_packages(paths, f"{package.__name__}.", onerror=_fail):
            if not found.name.endswith(".__main__"):
                yield found.name


def _fail(name: str) -> None:
    raise _shown(name, sys.exception() or ImportError(name))
