"""The command `taskflow`. Only the parser is loaded here: each command loads what it needs when it is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from taskflow.cli.exits import TABLE, Exit

_COMMANDS: Final = {
    "worker": "taskflow.cli.worker",
    "demo": "taskflow.cli.demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Errors of ours are one line on stderr, never a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = import_module(_COMMANDS[arguments.command]).run(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _explain(error)
    return code


def _explain(error: Exception) -> int:
    from taskflow.model.errors import BrokerError, ConfigurationError, TaskflowError

    if not isinstance(error, TaskflowError):
        raise error
    print(f"taskflow: {error}", file=sys.stderr)
    return Exit.BROKER if isinstance(error, BrokerError) else Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="taskflow",
        description="Background jobs for Python.",
        epilog=f"exit codes:\n{TABLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_worker(commands.add_parser("worker", help="work the jobs of modules", description="Work the jobs that the modules declare."))
    _add_demo(
        commands.add_parser(
            "demo", help="index the standard library, as jobs", description="Index Python's standard library, a job for each file."
        )
    )
    return parser


def _add_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a module that declares jobs, for example app.tasks")
    _add_broker(parser)
    parser.add_argument("--queues", metavar="Q[=W],...", help="a,b: strictly in that order; a=3,b=1: weighted; all queues by default")
    parser.add_argument("--concurrency", type=_positive, default=100, metavar="N", help="jobs at one time (default: 100)")
    parser.add_argument("--drain", action="store_true", help="end when the queues are empty")
    parser.add_argument(
        "--drain-horizon", type=float, default=60.0, metavar="S", help="with --drain, wait for what is due within S seconds (default: 60)"
    )
    parser.add_argument(
        "--grace", type=float, default=25.0, metavar="S", help="seconds that runs have to finish when stopping (default: 25)"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default: info")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="where the queue's file goes and stays (default: a temporary folder)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N files")


def _add_broker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--broker", metavar="URL", help="where the jobs wait (default: TASKFLOW_BROKER, else sqlite:///taskflow.db)")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)
