"""The command `taskflow`. Nothing is loaded before it is needed: the parser first, then the one command's own."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's own would load typing, and a Ctrl-C meanwhile would show our frames
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Errors of ours are one line on stderr, never a traceback."""
    from taskflow.cli.interrupts import interrupts

    interrupts.watch()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt as told:
        return _interrupted(told)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        _forget_output()
        return 0
    except Exception as error:
        return _explain(error)
    finally:
        interrupts.forget()
    return code


def _run(argv: Sequence[str] | None) -> int:
    from importlib import import_module

    from taskflow.cli.parser import a_parser

    arguments = a_parser().parse_args(argv)
    code: int = import_module(f"taskflow.cli.{arguments.module}").run(arguments)
    return code


def _interrupted(told: KeyboardInterrupt) -> int:
    """A second Ctrl-C ends what is left of the process without a word."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return 128 + int(getattr(told, "number", signal.SIGINT))


def _forget_output() -> None:
    """Python flushes it once more at its end, which must not fail again."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> int:
    from taskflow.cli.exits import Exit
    from taskflow.model.errors import BrokerError, ConfigurationError, TaskflowError

    if not isinstance(error, TaskflowError):
        raise error
    print(f"taskflow: {error}", file=sys.stderr)
    if isinstance(error, BrokerError):
        return Exit.BROKER
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED
