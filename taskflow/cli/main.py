"""The command `taskflow`. Only the parser is loaded here: each command loads what it needs when it is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from taskflow.cli.exits import Exit
from taskflow.cli.parser import a_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Errors of ours are one line on stderr, never a traceback."""
    arguments = a_parser().parse_args(argv)
    try:
        code: int = import_module(f"taskflow.cli.{arguments.module}").run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        return Exit.OK
    except Exception as error:
        return _explain(error)
    return code


def _explain(error: Exception) -> int:
    from taskflow.model.errors import BrokerError, ConfigurationError, TaskflowError

    if not isinstance(error, TaskflowError):
        raise error
    print(f"taskflow: {error}", file=sys.stderr)
    if isinstance(error, BrokerError):
        return Exit.BROKER
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED
