"""The registry, which finds job types by their names and aliases."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from taskflow.app.job_function import location
from taskflow.app.job_type import AnyJob
from taskflow.model.errors import DeclarationError


class Registry:
    """Finds job types by their names and aliases. If a function is declared again (by a reload,
    or as `__main__` and then by import), its new job replaces the old one."""

    def __init__(self) -> None:
        self._jobs: dict[str, AnyJob] = {}

    def add(self, job: AnyJob) -> None:
        for name in (job.name, *job.aliases):
            standing = self._jobs.get(name)
            if standing is not None and _owner(standing) != _owner(job):
                both = f"{location(standing.function)} and {location(job.function)}"
                raise DeclarationError(f"two jobs are called {name!r}: {both}; give one of them another name=")
        for name in [name for name, standing in self._jobs.items() if standing.name == job.name and _owner(standing) == _owner(job)]:
            del self._jobs[name]
        for name in (job.name, *job.aliases):
            self._jobs[name] = job

    def get(self, name: str) -> AnyJob | None:
        return self._jobs.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all jobs, with their aliases, sorted."""
        return tuple(sorted(self._jobs))

    def resolve(self) -> None:
        """Resolve the annotations of every job, including names that were undefined when it was
        declared. Raises DeclarationError, naming the parameter, if one cannot be resolved."""
        for job in self:
            job.codec.resolve()

    def __iter__(self) -> Iterator[AnyJob]:
        """Yield each job once, sorted by name."""
        return iter(sorted(set(self._jobs.values()), key=lambda job: job.name))

    def __len__(self) -> int:
        return len(set(self._jobs.values()))


def _owner(job: AnyJob) -> tuple[str, str]:
    code = getattr(inspect.unwrap(job.function), "__code__", None)
    return (str(Path(code.co_filename).resolve()) if code else job.function.__module__, job.function.__qualname__)
