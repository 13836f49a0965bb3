"""Maps names to jobs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskflow.app.execution_mode import RUN_AS_MAIN
from taskflow.model.envelope import check_job_name
from taskflow.model.errors import DeclarationError
from taskflow.model.suggestions import nearest

if TYPE_CHECKING:
    from taskflow.app.job import AnyJob


class Registry:
    """Job types by name and alias. A function that is declared again (by a reload, or as `__main__` and then by import) replaces its older
    job."""

    def __init__(self) -> None:
        self._jobs: dict[str, AnyJob] = {}

    def add(self, job: AnyJob) -> None:
        for name in (job.name, *job.aliases):
            standing = self._jobs.get(name)
            if standing is not None and _owner(standing) != _owner(job):
                raise DeclarationError(
                    f"two jobs are called {name!r}: {place(standing.function)} and {place(job.function)}; give one of them another name="
                )
        for name in [name for name, standing in self._jobs.items() if standing.name == job.name and _owner(standing) == _owner(job)]:
            del self._jobs[name]
        for name in (job.name, *job.aliases):
            self._jobs[name] = job

    def get(self, name: str) -> AnyJob | None:
        return self._jobs.get(name)

    def resolve(self) -> None:
        """Resolve the annotations of every job, including names that were undefined before. Raises DeclarationError, naming the
        parameter."""
        for job in self:
            job.codec.resolve()

    def nearest(self, name: str) -> str | None:
        near = nearest(name, self._jobs)
        return near[0] if near else None

    def __iter__(self) -> Iterator[AnyJob]:
        """Yield each job once, by name."""
        return iter(sorted(set(self._jobs.values()), key=lambda job: job.name))

    def __len__(self) -> int:
        return len(set(self._jobs.values()))


def name_of(function: Callable[..., Any]) -> str:
    """Return module and qualified name, as a worker imports them. Raises DeclarationError for a function inside a function."""
    if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
        raise DeclarationError(f"{place(function)}: a worker cannot import a function inside a function by name; set name=")
    return check_job_name(f"{_module_of(function)}.{function.__qualname__}")


def place(function: Callable[..., Any]) -> str:
    """Return the file and line of a function, for messages."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} ({function.__qualname__})" if code else repr(function)


def _owner(job: AnyJob) -> tuple[str, str]:
    code = getattr(inspect.unwrap(job.function), "__code__", None)
    return (str(Path(code.co_filename).resolve()) if code else job.function.__module__, job.function.__qualname__)


def _module_of(function: Callable[..., Any]) -> str:
    if function.__module__ not in RUN_AS_MAIN:
        return function.__module__
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    spec = scope.get("__spec__")
    if spec is not None and spec.name not in RUN_AS_MAIN:  # python -m package.module
        return str(spec.name)
    return _dotted(Path(scope.get("__file__") or "__main__.py").resolve())


def _dotted(file: Path) -> str:
    """Return the module name by which a worker would import a script: relative to the nearest folder on the import path, or to the current
    one.

    The script's own folder, which Python puts on the path, counts only if it is the current one.
    """
    here = Path.cwd().resolve()
    folders = {Path(entry).resolve() for entry in sys.path if entry} - {file.parent} | {here}
    above = [folder for folder in folders if file.is_relative_to(folder)]
    relative = file.relative_to(max(above, key=lambda folder: len(folder.parts))) if above else Path(file.name)
    return ".".join(relative.with_suffix("").parts)
