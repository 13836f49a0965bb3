"""The input of `taskflow demo`: Python files on this machine."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_INSTALLED: Final = ("site-packages", "dist-packages")


def source_files() -> Iterator[str]:
    """Yield the paths of readable Python files: first this Python's standard library,
    then its installed packages, then those of other Pythons.

    The order is always the same: folder by folder from the top, with names sorted.
    """
    for root in dict.fromkeys(os.path.realpath(root) for root in _roots()):
        yield from _within(root)


def _roots() -> Iterator[str]:
    """Yield the folders to search. They may be nested, but `_within` does not descend from one into another."""
    yield from (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for prefix in (sys.base_prefix, "/usr/local", "/usr"):
        for library in sorted(Path(prefix, "lib").glob("python3*")):
            yield from (str(library), *(str(library / name) for name in _INSTALLED))


def _within(root: str) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - {*_INSTALLED, "__pycache__"})
        for path in (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")):
            if os.access(path, os.R_OK):  # skips other users' private files and broken links
                yield path
