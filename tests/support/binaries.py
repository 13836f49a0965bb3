"""Finds the servers that this machine can run: those that a variable names, those on PATH, and those in installed wheels."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


class ServerFailed(RuntimeError):
    """Raised if a server did not start, or there is none to start."""


@dataclass(frozen=True)
class ServerBinary:
    """A server that this machine can run. `name` is its name and version, as in "redis 8.0.2" or "postgres 15.18"."""

    name: str
    path: Path
    version: tuple[int, ...]


Probe = Callable[[Path], ServerBinary | None]
"""Returns the server at a path, or None if the program does not run here or is not a server of that kind."""


def find_binaries(named: str, others: Iterable[Path], probe: Probe, complaint: str) -> Iterator[ServerBinary]:
    """Yield the servers at the paths in `named`, separated as in PATH, and then those of the `others` that run here.

    Raises:
        ServerFailed: a path in `named` is not a server that runs here. `complaint` is the message, with `{}` for the path.
    """
    for path in filter(None, named.split(os.pathsep)):
        if (found := probe(Path(path))) is None:
            raise ServerFailed(complaint.format(path))
        yield found
    yield from filter(None, map(probe, others))


def on_path(*commands: str) -> Iterator[Path]:
    return map(Path, filter(None, map(shutil.which, commands)))


def in_wheels(*wheels: tuple[str, str], reach: Callable[[Path], Path] = lambda package: package) -> Iterator[Path]:
    """Yield the files that match the patterns in packages, without importing them. `reach` maps a package's folder to the folder to
    search."""
    for package, pattern in wheels:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from sorted(reach(Path(folder)).glob(pattern), reverse=True)
