"""The parser of the command line. It imports only argparse, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from taskflow.cli.exits import TABLE

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

# The shortest ttl in seconds: a quarter of it lies between two heartbeats.
SHORTEST_TTL: Final = 1.0
STATUSES: Final = ("held", "scheduled", "ready", "running", "succeeded", "failed", "cancelled")


class Formatter(argparse.HelpFormatter):
    """Formats help for a fixed width. By default argparse would load shutil, and with it archive modules, for every flag that is
    declared."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)


class AsWritten(Formatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


def columns() -> int:
    """Return the width of the terminal, like `shutil.get_terminal_size`."""
    with contextlib.suppress(KeyError, ValueError):
        if (told := int(os.environ["COLUMNS"])) > 0:
            return told
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no output, or no terminal
        if (seen := os.get_terminal_size(sys.__stdout__.fileno()).columns) > 0:  # type: ignore[union-attr]
            return seen
    return 80


class Parser(argparse.ArgumentParser):
    """Suggests the command or flag that an unknown one may stand for.

    Flags cannot be abbreviated, because a later version's flags could change the meaning of an abbreviation.
    """

    commands: Mapping[str, Parser] = {}

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": Formatter, **given})

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help. Unlike argparse's own, it reports an error if that cannot be written."""
        print(self.format_help(), end="", file=file)
        if file is None:
            sys.stdout.flush()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # of overloads
        known, unknown = super().parse_known_args(args, namespace)
        if unknown and self.commands:
            command = self.commands[known.command]
            flags = [flag[2:] for action in command._actions for flag in action.option_strings]  # the dashes would make all similar
            hint = _hint(unknown[0].removeprefix("--"), flags, "--")
            command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message on stderr and exit with 2, as argparse does."""
        message = re.sub(r"://\S*", "://***", message)  # hide the password of a broker URL in the wrong place
        slip = re.search(r"COMMAND: invalid choice: '([^']*)'", message)
        super().error(message + _hint(slip[1], self.commands) if slip else message)


def _hint(slip: str, known: Iterable[str], prefix: str = "") -> str:
    from taskflow.model.suggestions import nearest

    near = nearest(slip, sorted(known))
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def a_parser() -> Parser:
    parser = Parser(
        prog="taskflow",
        description="Background jobs for Python.",
        epilog=f"exit codes:\n{TABLE}",
        formatter_class=AsWritten,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and end")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.commands = commands.choices
    _worker(commands.add_parser("worker", help="run the jobs of modules", description="Run the jobs that the modules declare."))
    _demo(
        commands.add_parser(
            "demo",
            help="index this machine's Python files, as jobs",
            description="Index the Python files of this machine, the standard library's first, a job for each; a worker does them.",
        )
    )
    _status(commands.add_parser("status", help="the store at a glance", description="Queues, workers and totals."))
    _doctor(
        commands.add_parser(
            "doctor",
            help="whether jobs are safe in the store",
            description="Looks at the store's settings; exit 1 when there is a problem.",
        )
    )
    _migrate(
        commands.add_parser(
            "migrate",
            help="bring the store's tables to this version",
            description="Bring the tables of PostgreSQL or SQLite to the version that this taskflow needs. Other stores need none.",
        )
    )
    _queues(commands.add_parser("queues", help="queues and their counts", description="Every queue with its counts."))
    _jobs(
        commands.add_parser(
            "jobs", help="list jobs, or show some", description="List jobs, the newest first, or show those with the given ids."
        )
    )
    _retry(
        commands.add_parser("retry", help="run failed or cancelled jobs again", description="Failed and cancelled jobs become ready again.")
    )
    _cancel(commands.add_parser("cancel", help="cancel jobs", description="What waits is cancelled at once, what runs is asked to stop."))
    _purge(
        commands.add_parser(
            "purge", help="drop jobs", description="Drop ended jobs, cancel and drop waiting ones; what runs is left alone."
        )
    )
    for verb, meaning in (("pause", "claim nothing more of queues"), ("resume", "end a pause")):
        _pause(commands.add_parser(verb, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}."), verb)
    return parser


def _worker(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="worker", line=None)
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a module that declares jobs, for example app.tasks")
    parser.add_argument("--all-submodules", action="store_true", help="of packages, import every module")
    _broker(parser)
    parser.add_argument("--queues", metavar="Q[=W],...", help="a,b: strictly in that order; a=3,b=1: weighted; every queue by default")
    parser.add_argument("--concurrency", type=_positive, default=100, metavar="N", help="jobs at one time (default: 100)")
    parser.add_argument("--drain", action="store_true", help="end when the queues are empty; 1 if a job that it ran has failed")
    parser.add_argument(
        "--drain-horizon", type=_seconds, default=60.0, metavar="S", help="with --drain, wait for what is due in S seconds (60)"
    )
    parser.add_argument(
        "--grace", type=_seconds, default=25.0, metavar="S", help="seconds that runs have to finish when stopping (default: 25)"
    )
    parser.add_argument(
        "--ttl", type=_ttl, default=20.0, metavar="S", help="seconds without a sign of life after which others take its jobs (default: 20)"
    )
    parser.add_argument(
        "--start-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds to wait, at the start, for a broker that does not answer; then the process ends with 3 (default: 30; 0: at once)",
    )
    parser.add_argument(
        "--stall-limit",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds for which a job may block the event loop; after that the process ends with 5, and others take its jobs "
        "(default: 300; 0: never)",
    )
    _health(parser)
    _supervised(parser)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default: info")
    parser.add_argument("--log-format", default="text", choices=("text", "json"), help="default: text")


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--health-port", type=_port, metavar="PORT", help="answer /live and /ready over HTTP (0: any free port)")
    parser.add_argument(
        "--health-host",
        default="127.0.0.1",
        metavar="HOST",
        help="the address for it (default: 127.0.0.1, this machine alone; in a container 0.0.0.0 or ::, or no probe reaches it)",
    )


def _supervised(parser: argparse.ArgumentParser) -> None:
    """Flags that put a supervisor above the worker."""
    group = parser.add_argument_group("under a supervisor", "It replaces workers that die. SIGHUP replaces them one by one.")
    group.add_argument(
        "--processes", action=_Supervise, type=_positive, metavar="N", help="N worker processes, each with --concurrency jobs"
    )
    group.add_argument("--max-jobs", action=_Supervise, type=_positive, metavar="N", help="replace a worker that has run N jobs")
    group.add_argument(
        "--max-memory", action=_Supervise, type=_size, metavar="BYTES", help="replace a worker that takes more memory: 512M, 1G"
    )
    group.add_argument("--reload", action=_Supervise, nargs=0, default=False, help="replace workers when a Python file here changes")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="demo")
    parser.add_argument("--folder", metavar="DIR", help="where the queue's file goes and stays (default: a new temporary folder)")
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="no more than the first N files (default: 3000)")


def _status(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="look")
    _reads(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="doctor")
    _reads(parser)


def _migrate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="migrate")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="only say what is pending")
    instead.add_argument("--sql", action="store_true", help="only print the SQL, for an administrator to run")
    _broker(parser)


def _queues(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="look")
    _reads(parser)


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="look", all=False)
    parser.add_argument("ids", nargs="*", metavar="ID", help="show these, with their errors")
    _filter_options(parser)
    parser.add_argument("--limit", type=_positive, default=50, metavar="N", help="at most N (default: 50)")
    parser.add_argument("--before", metavar="ID", help="those older than this one: the next page")
    _reads(parser)


def _retry(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="act")
    _acts(parser, default="failed")


def _cancel(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="act")
    _acts(parser, default="held, scheduled, ready and running")


def _purge(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="act", ids=[])
    _acts(parser, default="ended", with_ids=False)


def _pause(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.set_defaults(module="act")
    parser.add_argument("names", nargs="+", metavar="QUEUE", help=f"the queues to {verb}")
    _broker(parser)


def _reads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON, for programs")
    _broker(parser)


def _acts(parser: argparse.ArgumentParser, *, default: str, with_ids: bool = True) -> None:
    if with_ids:
        parser.add_argument("ids", nargs="*", metavar="ID", help="these jobs, or those that the filters choose")
    _filter_options(parser, default)
    parser.add_argument("--all", action="store_true", help=f"instead of ids and filters: all that are {default}")
    parser.add_argument("--dry-run", action="store_true", help="only say how many it would be")
    _broker(parser)


def _filter_options(parser: argparse.ArgumentParser, default: str = "all") -> None:
    parser.add_argument("--queue", metavar="Q", help="only of this queue")
    parser.add_argument("--job", metavar="NAME", help="only of this job type")
    parser.add_argument("--status", action="append", choices=STATUSES, help=f"only with this status; may be repeated (default: {default})")
    parser.add_argument("--ended-before", type=_seconds, metavar="S", help="only those that ended S seconds ago or earlier")
    parser.add_argument("--poison", action="store_true", help="only those that ended as poison")


def _broker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--broker",
        metavar="URL",
        help="where the jobs wait (default: TASKFLOW_BROKER, which keeps a password off the command line, else sqlite:///taskflow.db)",
    )


class _Supervise(argparse.Action):
    """Any of these flags asks for a supervisor. Without them the command is the worker itself."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.module = "supervise"
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


class _Version(argparse.Action):
    """Looks up the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"taskflow {version('taskflow-jobs')}", flush=True)
        parser.exit()


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _size(text: str) -> int:
    """Parse a number of bytes; K, M and G are powers of 1,024."""
    written = re.fullmatch(r"([1-9][0-9]{0,18})([KMG]?)", text, re.IGNORECASE | re.ASCII)
    if written is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 536870912, 512M or 1G")
    return int(written[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[written[2].upper()]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return seconds


def _ttl(text: str) -> float:
    seconds = _seconds(text)
    if seconds < SHORTEST_TTL:
        raise argparse.ArgumentTypeError(f"{text!r} is too short: a busy machine would be taken for a dead one; {SHORTEST_TTL:g} or more")
    return seconds
