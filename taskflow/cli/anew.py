"""This command once more, for a process of its own."""

from __future__ import annotations

import sys


def command_of(argv: list[str]) -> list[str]:
    """As this process was started, with the same options of Python; or, when another program has called us, as `python -m taskflow`."""
    how = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if argv != sys.orig_argv[len(sys.orig_argv) - len(argv) :] or argv != sys.argv[1:]:
        how = ["-m", "taskflow"]
    return [sys.executable, *how, *argv]
