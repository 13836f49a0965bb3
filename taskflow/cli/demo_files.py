"""The input of `taskflow demo`: the Python files that lie on this machine."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_INSTALLED: Final = ("site-packages", "dist-packages")


def source_files() -> Iterator[str]:
    """Paths of those that can be read: this Python's standard library, what is installed for it, then what other Pythons have.

    In the same order each time: folder by folder from the top, names sorted.
    """
    for root in dict.fromkeys(os.path.realpath(root) for root in _roots()):
        yield from _within(root)


def _roots() -> Iterator[str]:
    """None of them lies in another, as far as `_within` goes down."""
    yield from (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for prefix in (sys.base_prefix, "/usr/local", "/usr"):
        for library in sorted(Path(prefix, "lib").glob("python3*")):
            yield from (str(library), *(str(library / name) for name in _INSTALLED))


def _within(root: str) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - {*_INSTALLED, "__pycache__"})
        for path in (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")):
            if os.access(path, os.R_OK):  # neither a stranger's own nor a link to nothing
                yield path
