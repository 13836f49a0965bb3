"""The command-line parser. It imports little besides argparse, so that `--help` responds at once."""

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
    from datetime import datetime

    from _typeshed import SupportsWrite

# The shortest ttl in seconds. A heartbeat is sent every quarter of it.
SHORTEST_TTL: Final = 1.0
STATUSES: Final = ("held", "scheduled", "ready", "running", "succeeded", "failed", "cancelled")


class Formatter(argparse.HelpFormatter):
    """Formats help for the terminal's width. argparse's own formatter would load
    shutil, and archive modules with it, as soon as a flag is declared."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)


class AsWritten(Formatter, argparse.RawDescriptionHelpFormatter):
    """A formatter that keeps the line breaks of descriptions."""


def columns() -> int:
    """Return the width of the terminal in characters, like `shutil.get_terminal_size`."""
    with contextlib.suppress(KeyError, ValueError):
        if (told := int(os.environ["COLUMNS"])) > 0:
            return told
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no output, or no terminal
        if (seen := os.get_terminal_size(sys.__stdout__.fileno()).columns) > 0:  # type: ignore[union-attr]
            return seen
    return 80


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the intended command or flag for an unknown one.

    Flags cannot be abbreviated, because a flag added in a later version could change the meaning of an abbreviation.
    """

    commands: Mapping[str, Parser] = {}
    otherwise = ""
    """The hint for an unknown command that resembles no known one."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": Formatter, **given})

    def branch(self, name: str, *, required: bool) -> argparse._SubParsersAction[Parser]:
        """Make an argument choose one of `commands`, each with its own parser."""
        branches = self.add_subparsers(dest=name, required=required, metavar=name.upper(), parser_class=Parser)
        self.commands, self._chosen_by = branches.choices, name
        return branches

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help. If it cannot be written, this raises an error, which argparse's own method would ignore."""
        print(self.format_help(), end="", file=file)
        if file is None:
            sys.stdout.flush()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # of overloads
        known, unknown = super().parse_known_args(args, namespace)
        if unknown and self.commands:
            command = self.commands[getattr(known, self._chosen_by)]
            flags = [flag[2:] for action in command._actions for flag in action.option_strings]  # the dashes would make all of them similar
            hint = _hint(unknown[0].removeprefix("--"), flags, "--")
            command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message to stderr and exit with 2, like argparse."""
        message = re.sub(r"://\S*", "://***", message)  # hides the password of a broker URL in the wrong place
        slip = re.search(r"(?:COMMAND|ACTION): invalid choice: '([^']*)'", message)
        super().error(message + (_hint(slip[1], self.commands) or self.otherwise) if slip else message)


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
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.branch("command", required=True)

    def command(name: str, module: str, summary: str, description: str, **defaults: Any) -> Parser:
        added = commands.add_parser(name, help=summary, description=description)
        added.set_defaults(module=module, **defaults)
        return added

    _worker(command("worker", "worker", "run the jobs of modules", "Run the jobs that the modules declare.", line=None))
    index = "Index the Python files of this machine with one job per file, starting with the standard library."
    _demo(command("demo", "demo", "index this machine's Python files as jobs", index))
    _reads(command("status", "look", "show a summary of the store", "Show queues, workers and totals."))
    examine = "Check the store's settings. Exits with 1 if there is a problem."
    _reads(command("doctor", "doctor", "check whether jobs are safe in the store", examine))
    bring = "Migrate the tables of PostgreSQL or SQLite to the version that this taskflow needs."
    _migrate(command("migrate", "migrate", "migrate the store's tables to this version", bring))
    _reads(command("queues", "look", "list queues and their counts", "List every queue with its counts."))
    browse = "List jobs, newest first, or show those with the given ids."
    _jobs(command("jobs", "look", "list jobs, or show given ones", browse, all=False))
    again = "Make failed and cancelled jobs ready again."
    _acts(command("retry", "act", "run failed or cancelled jobs again", again), default="failed")
    stop = "Cancel waiting jobs at once, and ask running ones to stop."
    _acts(command("cancel", "act", "cancel jobs", stop), default="held, scheduled, ready and running")
    drop = "Drop ended jobs; cancel and drop waiting ones. Running jobs are not affected."
    _acts(command("purge", "act", "drop jobs", drop, ids=[]), default="ended", with_ids=False)
    for verb, meaning in (("pause", "stop claiming jobs from queues"), ("resume", "end a pause")):
        _pause(command(verb, "act", meaning, f"{meaning[0].upper()}{meaning[1:]}."), verb)
    regular = "List schedules, or act on them. Without an action, list all of them."
    _schedules(command("schedules", "schedules", "list schedules, or act on them", regular))
    return parser


def _worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a module that declares jobs, for example app.tasks")
    parser.add_argument("--all-submodules", action="store_true", help="import every module of packages")
    _broker(parser)
    parser.add_argument("--queues", metavar="Q[=W],...", help="a,b: in strict order; a=3,b=1: weighted (default: every queue)")
    parser.add_argument(
        "--concurrency", type=_positive, default=100, metavar="N", help="the number of jobs to run at the same time (default: 100)"
    )
    parser.add_argument("--drain", action="store_true", help="exit when the queues are empty, with 1 if a job has failed")
    parser.add_argument(
        "--drain-horizon", type=_seconds, default=60.0, metavar="S", help="with --drain, wait for jobs due within S seconds (default: 60)"
    )
    parser.add_argument(
        "--grace", type=_seconds, default=25.0, metavar="S", help="seconds that runs have to finish when stopping (default: 25)"
    )
    parser.add_argument(
        "--ttl",
        type=_ttl,
        default=20.0,
        metavar="S",
        help="seconds without a heartbeat after which other workers take its jobs (default: 20)",
    )
    parser.add_argument(
        "--start-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds to wait at the start for a broker that does not answer; then exit with 3 (default: 30; 0: at once)",
    )
    parser.add_argument(
        "--stall-limit",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds for which a job may block the event loop; then exit with 5, and other workers take its jobs "
        "(default: 300; 0: no limit)",
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
        help="the address to listen on (default: 127.0.0.1, for this machine only; a container needs 0.0.0.0 or ::)",
    )


def _supervised(parser: argparse.ArgumentParser) -> None:
    """Add the flags that start a supervisor."""
    group = parser.add_argument_group("under a supervisor", "The supervisor replaces workers that die. SIGHUP replaces them one by one.")
    group.add_argument(
        "--processes", action=_Supervise, type=_positive, metavar="N", help="run N worker processes, each with --concurrency jobs"
    )
    group.add_argument("--max-jobs", action=_Supervise, type=_positive, metavar="N", help="replace a worker that has run N jobs")
    group.add_argument(
        "--max-memory",
        action=_Supervise,
        type=_size,
        metavar="BYTES",
        help="replace a worker that uses more memory, for example 512M or 1G",
    )
    group.add_argument(
        "--reload", action=_Supervise, nargs=0, default=False, help="replace workers when a Python file in this folder changes"
    )


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="the folder for the queue's file, which is kept (default: a new temporary folder)")
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="use at most N files (default: 3000)")


def _migrate(parser: argparse.ArgumentParser) -> None:
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="only list pending migrations")
    instead.add_argument("--sql", action="store_true", help="only print the SQL, for an administrator to run")
    _broker(parser)


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="show these jobs with their errors")
    _filter_options(parser)
    parser.add_argument("--limit", type=_positive, default=50, metavar="N", help="list at most N jobs (default: 50)")
    parser.add_argument("--before", metavar="ID", help="list jobs older than this one: the next page")
    _reads(parser)


def _pause(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("names", nargs="+", metavar="QUEUE", help=f"the queues to {verb}")
    _broker(parser)


def _schedules(parser: Parser) -> None:
    _reads(parser)
    actions = parser.branch("action", required=False)
    parser.otherwise = "; to show one schedule: taskflow schedules list NAME"
    parser.set_defaults(action="list", names=[])

    def action(name: str, summary: str, nargs: str = "+", **defaults: Any) -> Parser:
        added = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        added.add_argument("names", nargs=nargs, metavar="NAME", help="the schedules")
        added.set_defaults(**defaults)
        return added

    _json(listing := action("list", "list all schedules, or show given ones in full", "*"), argparse.SUPPRESS)
    _broker(listing, argparse.SUPPRESS)
    for name, summary in (
        ("trigger", "add a job of schedules now; their next times fire all the same"),
        ("pause", "stop schedules"),
        ("resume", "end a pause; times that have passed meanwhile do not fire"),
        ("remove", "remove schedules that no running worker declares"),
    ):
        _broker(action(name, summary), argparse.SUPPRESS)
    _backfill(action("backfill", "add a job for each time of schedules in a span"))
    following = actions.add_parser("next", help=(summary := "compute times, without a broker"), description=f"{summary.capitalize()}.")
    _next(following)
    following.set_defaults(module="next_times")


def _backfill(parser: argparse.ArgumentParser) -> None:
    zone = "ISO 8601, in the schedule's time zone unless it names an offset"
    parser.add_argument("--from", dest="start", type=_time, required=True, metavar="TIME", help=f"the start of the span, included; {zone}")
    parser.add_argument("--to", dest="end", type=_time, required=True, metavar="TIME", help="the end of the span, excluded")
    parser.add_argument(
        "--limit", type=_positive, default=1000, metavar="N", help="add nothing if a schedule has more than N times (default: 1000)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print how many jobs would be added, and the first and last time")
    _broker(parser, argparse.SUPPRESS)


def _next(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("expression", nargs="*", metavar="EXPRESSION", help='a cron expression in quotes, such as "0 9 * * MON-FRI"')
    parser.add_argument("--every", type=_seconds, metavar="SECONDS", help="an interval, instead of an expression")
    parser.add_argument("--tz", default="UTC", metavar="ZONE", help="the time zone, such as Europe/Paris (default: UTC)")
    parser.add_argument("--count", type=_positive, default=5, metavar="N", help="the number of times (default: 5)")
    parser.add_argument("--from", dest="start", type=_time, metavar="TIME", help="begin at this time in that zone (default: now)")
    _json(parser, argparse.SUPPRESS)


def _reads(parser: argparse.ArgumentParser) -> None:
    _json(parser)
    _broker(parser)


def _json(parser: argparse.ArgumentParser, default: Any = False) -> None:
    parser.add_argument("--json", action="store_true", default=default, help="JSON, for programs")


def _acts(parser: argparse.ArgumentParser, *, default: str, with_ids: bool = True) -> None:
    if with_ids:
        parser.add_argument("ids", nargs="*", metavar="ID", help="these jobs, instead of filters")
    _filter_options(parser, default)
    parser.add_argument("--all", action="store_true", help=f"all jobs that are {default}, instead of ids and filters")
    parser.add_argument("--dry-run", action="store_true", help="only print how many jobs would be affected")
    _broker(parser)


def _filter_options(parser: argparse.ArgumentParser, default: str = "all") -> None:
    parser.add_argument("--queue", metavar="Q", help="only jobs of this queue")
    parser.add_argument("--job", metavar="NAME", help="only jobs of this type")
    parser.add_argument(
        "--status", action="append", choices=STATUSES, help=f"only jobs with this status; may be repeated (default: {default})"
    )
    parser.add_argument("--ended-before", type=_seconds, metavar="S", help="only jobs that ended at least S seconds ago")
    parser.add_argument("--poison", action="store_true", help="only jobs that ended as poison")


def _broker(parser: argparse.ArgumentParser, default: Any = None) -> None:
    parser.add_argument(
        "--broker",
        default=default,
        metavar="URL",
        help="the broker's URL (default: TASKFLOW_BROKER, which keeps passwords off the command line, else sqlite:///taskflow.db)",
    )


class _Supervise(argparse.Action):
    """Selects the supervisor if one of its flags is given. Without them, the command runs the worker itself."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.module = "supervise"
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


class _Version(argparse.Action):
    """Prints the version, which is looked up only on request."""

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


def _time(text: str) -> datetime:
    from datetime import datetime

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T09:00, or 2026-01-31T09:00+01:00") from None
    if not 1970 <= time.year < 3000:
        raise argparse.ArgumentTypeError(f"{text!r} is not between the years 1970 and 2999")
    return time


def _ttl(text: str) -> float:
    seconds = _seconds(text)
    if seconds < SHORTEST_TTL:
        raise argparse.ArgumentTypeError(f"{text!r} is too short: a busy worker would be declared dead; use {SHORTEST_TTL:g} or more")
    return seconds
