"""`taskflow completion SHELL`: prints a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

from taskflow.cli.exit_codes import Exit
from taskflow.cli.parser import a_parser
from taskflow.model.errors import ConfigurationError


def run(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise ConfigurationError("completion needs shtab: pip install shtab") from None
    print(shtab.complete(a_parser(), arguments.shell))
    return Exit.OK
