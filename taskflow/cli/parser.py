"""The command-line parser. It imports little besides argparse, so that `--help` responds at once."""

from __future__ import annotations

import argparse
from argparse import _StoreAction
from collections.abc import Callable, Sequence
from typing import Any, Final

from taskflow.cli.base_parser import Parser
from taskflow.cli.command_groups import GROUPS, OF_SCHEDULES, epilog_of
from taskflow.cli.exit_codes import TABLE
from taskflow.cli.option_types import count, fingerprint, interval, positive, seconds, stages, time
from taskflow.cli.worker_options import add_worker_options

STATUSES: Final = ("held", "scheduled", "ready", "running", "succeeded", "failed", "cancelled")
STATUSES_FOR: Final = {
    "retry": ("failed", "cancelled"),
    "cancel": ("held", "scheduled", "ready", "running"),
    "purge": ("held", "scheduled", "ready", "succeeded", "failed", "cancelled"),
}
"""The statuses that each action can act on, as in `taskflow.app.bulk_actions`, which takes longer to import."""

BROKER: Final = "the broker's URL (default: TASKFLOW_BROKER, which keeps passwords off the command line, else sqlite:///taskflow.db)"


def a_parser() -> Parser:
    parser = Parser(
        prog="taskflow",
        description="Background jobs for Python.",
        epilog=f"exit codes:\n{TABLE}\n\nmore: docs/reference/cli.md",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.branch("command", required=True)

    def command(name: str, module: str, summary: str, description: str, **defaults: Any) -> Parser:
        added = commands.add_parser(name, help=summary, description=description, epilog=epilog_of(name))
        added.set_defaults(module=module, **defaults)
        return added

    worker = command("worker", "worker", "run the jobs of modules", "Run the jobs that the modules declare.", line=None)
    _modules(worker)
    _broker(worker)
    add_worker_options(worker)
    once = "Send one job by its name, and print its id."
    _send(command("send", "send", "send a job by its name", once))
    fits = "Say whether the waiting and running jobs would run with the code of the modules. Runs none. Exits with 1 if one would not."
    _check(command("check", "check", "say whether the waiting jobs would run with this code", fits))
    _add_looks(command)
    _add_acts(command)
    examine = "Check the store's settings. Exits with 1 if there is a problem."
    _reads(command("doctor", "doctor", "check whether jobs are safe in the store", examine))
    bring = "Migrate the tables of PostgreSQL or SQLite to the version that this taskflow needs."
    _migrate(command("migrate", "migrate", "migrate the store's tables to this version", bring))
    index = "Index the Python files of this machine with one job per file, starting with the standard library."
    _demo(command("demo", "demo", "index this machine's Python files as jobs", index))
    completes = "Print a script that completes commands and options."
    shells = command("completion", "completion", "print a completion script for a shell", completes)
    shells.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    topic = command("help", "help", "show the help of a command", "Show the help of a command, as its option --help does.")
    words = (*commands.choices, *OF_SCHEDULES)
    topic.add_argument("topic", nargs="*", choices=words, action=_Help, const=parser, metavar="COMMAND", help="the command")
    parser.list_commands(GROUPS)
    shared = parser.add_argument_group("an option of most commands")
    shared._group_actions.append(_StoreAction(["--broker"], "broker", metavar="URL", help=BROKER))
    return parser


def _add_looks(command: Callable[..., Parser]) -> None:
    """Add the commands that look at jobs, queues and workers."""
    _status(command("status", "status", "show a summary of the store", "Show the queues and workers of the store."))
    listing = "List jobs by status, or show those with the given ids."
    _jobs(command("jobs", "jobs", "list jobs, or show given ones", listing, all=False))
    why = "Say why jobs are in their present state, the cause first, and what to do about it."
    _explain(command("explain", "explain", "say why a job has not run, or how it ended", why))
    causes = "List the causes for which jobs have failed, the most frequent first."
    _failures(command("failures", "failures", "list failed jobs by their cause", causes, status=None, poison=False))
    _reads(command("queues", "status", "list queues and their counts", "List every queue with its counts."))
    fleet = "List the running workers: busy slots, heartbeat, jobs, deploy and queues."
    _reads(command("workers", "status", "list the running workers", fleet))
    _reads(command("metrics", "metrics", "count events by queue", "Show how often each event has happened since the store was created."))
    log = "List what operators did to jobs, queues and schedules, the newest first."
    _audit(command("audit", "audit", "list what operators did", log))


def _add_acts(command: Callable[..., Parser]) -> None:
    """Add the commands that act on jobs, queues and schedules."""
    again = "Make failed and cancelled jobs ready again."
    _acts(retry := command("retry", "job_actions", "run failed or cancelled jobs again", again), "retry", default="failed")
    _groups(retry)
    stop = "Cancel waiting jobs at once, and ask running ones to stop."
    _acts(command("cancel", "job_actions", "cancel jobs", stop), "cancel", default="held, scheduled, ready and running")
    drop = "Drop ended jobs; with --status, cancel and drop waiting ones. Running jobs are not affected."
    _acts(command("purge", "job_actions", "drop jobs", drop), "purge", default="ended")
    for verb, meaning in (("pause", "stop claiming jobs from queues"), ("resume", "end a pause")):
        _pause(command(verb, "job_actions", meaning, f"{meaning[0].upper()}{meaning[1:]}."), verb)
    regular = "List schedules, or act on them. Without an action, list all of them."
    _schedules(command("schedules", "schedules", "list schedules, or act on them", regular))


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        nargs="?",
        type=interval,
        const=2.0,
        metavar="S",
        help="show it every S seconds (default: 2) with rates, in place on a terminal, until Ctrl-C",
    )
    _reads(parser)


def _modules(parser: argparse.ArgumentParser) -> None:
    named = "a module that declares jobs, for example app.tasks (default: the modules of [tool.taskflow.worker] in pyproject.toml)"
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=named)
    parser.add_argument("--all-submodules", action="store_true", help="import every module of packages")


def _send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's name, such as app.tasks.charge")
    parser.add_argument(
        "--args", default="{}", metavar="JSON", help="its arguments, an object by parameter name such as '{\"x\": 1}'; - reads stdin"
    )
    parser.add_argument(
        "--module",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module, so that the arguments are checked here and the options of @job apply; may be repeated",
    )
    parser.add_argument("--queue", metavar="Q", help="send it to this queue")
    parser.add_argument("--after", type=seconds, metavar="S", help="run it in S seconds or later; also 90m, 12h, 7d")
    parser.add_argument("--key", metavar="K", help="send nothing if a live job has this key, and print the id of that job")
    _operator(parser)
    _reads(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    _modules(parser)
    parser.add_argument("--queue", action="append", metavar="Q", help="only jobs of this queue; may be repeated")
    parser.add_argument("--limit", type=positive, default=10_000, metavar="N", help="look at N jobs of each queue (default: 10000)")
    _reads(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="the folder for the queue's file, which is kept (default: a new temporary folder)")
    parser.add_argument("--limit", type=positive, default=3000, metavar="N", help="use at most N files (default: 3000)")


def _migrate(parser: argparse.ArgumentParser) -> None:
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="only list pending migrations")
    instead.add_argument("--sql", action="store_true", help="only print the SQL, for an administrator to run")
    _reads(parser)


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="show these jobs: arguments, result, runs on a time line, error")
    _filter_options(parser)
    parser.add_argument("--limit", type=positive, default=50, metavar="N", help="list at most N jobs (default: 50)")
    parser.add_argument("--cursor", metavar="TEXT", help="list the next page: the text that the page before has printed")
    parser.add_argument("--verbose", action="store_true", help="with ids: show long values, and the tracebacks of all errors")
    _reads(parser)


def _groups(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one cause", "Retry the failed jobs of one cause in stages, and stop when one of them fails again.")
    group.add_argument("--group", type=fingerprint, metavar="G", help="the jobs of this group of `taskflow failures`")
    group.add_argument("--canary", type=positive, default=0, metavar="N", help="first retry N jobs, and wait until they have ended")
    group.add_argument("--then", type=stages, default=(), metavar="N,...", help="the sizes of further stages, such as 10,100,all")
    group.add_argument("--rate", type=positive, metavar="N", help="retry at most N jobs a second")
    group.add_argument("--wait", type=seconds, default=300.0, metavar="S", help="stop if a stage takes longer (default: 300)")


def _failures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", metavar="Q", help="only jobs of this queue")
    parser.add_argument("--job", metavar="NAME", help="only jobs of this type")
    parser.add_argument("--tag", metavar="TAG", help="only jobs with this tag")
    parser.add_argument("--ended-before", type=seconds, metavar="S", help="only jobs that failed at least S seconds ago")
    _reads(parser)


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help="the jobs")
    _reads(parser)


def _pause(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("names", nargs="+", metavar="QUEUE", help=f"the queues to {verb}")
    _operator(parser)
    _reads(parser)


def _audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=positive, default=50, metavar="N", help="list at most N acts (default: 50)")
    parser.add_argument("--before", type=positive, metavar="N", help="list acts older than number N: the next page")
    _reads(parser)


def _schedules(parser: Parser) -> None:
    _reads(parser)
    actions = parser.branch("action", required=False)
    parser.otherwise = "; to show one schedule: taskflow schedules list NAME"
    parser.set_defaults(action="list", names=[])

    def action(name: str, summary: str, nargs: str = "+", **defaults: Any) -> Parser:
        description = f"{summary[0].upper()}{summary[1:]}."
        added = actions.add_parser(name, help=summary, description=description, epilog=epilog_of("schedules", name))
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
        acting = action(name, summary)
        if name == "remove":
            _yes(acting)
        _operator(acting)
        _json(acting, argparse.SUPPRESS)
        _broker(acting, argparse.SUPPRESS)
    _backfill(action("backfill", "add a job for each time of schedules in a span"))
    summary = "compute times, without a broker"
    following = actions.add_parser("next", help=summary, description=f"{summary.capitalize()}.", epilog=epilog_of("schedules", "next"))
    _next(following)
    following.set_defaults(module="next_times")
    parser.list_commands({"actions": OF_SCHEDULES})


def _backfill(parser: argparse.ArgumentParser) -> None:
    zone = "ISO 8601, in the schedule's time zone unless it names an offset"
    parser.add_argument("--from", dest="start", type=time, required=True, metavar="TIME", help=f"the start of the span, included; {zone}")
    parser.add_argument("--to", dest="end", type=time, required=True, metavar="TIME", help="the end of the span, excluded")
    parser.add_argument(
        "--limit", type=positive, default=1000, metavar="N", help="add nothing if a schedule has more than N times (default: 1000)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print how many jobs would be added, and the first and last time")
    _operator(parser)
    _json(parser, argparse.SUPPRESS)
    _broker(parser, argparse.SUPPRESS)


def _next(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("expression", nargs="*", metavar="EXPRESSION", help='a cron expression in quotes, such as "0 9 * * MON-FRI"')
    parser.add_argument("--every", type=seconds, metavar="SECONDS", help="an interval, instead of an expression")
    parser.add_argument("--tz", default="UTC", metavar="ZONE", help="the time zone, such as Europe/Paris (default: UTC)")
    parser.add_argument("--count", type=count, default=5, metavar="N", help="the number of times, at most 10000 (default: 5)")
    parser.add_argument("--from", dest="start", type=time, metavar="TIME", help="begin at this time in that zone (default: now)")
    _json(parser, argparse.SUPPRESS)


def _reads(parser: argparse.ArgumentParser) -> None:
    _json(parser)
    _broker(parser)


def _json(parser: argparse.ArgumentParser, default: Any = False) -> None:
    parser.add_argument("--json", action="store_true", default=default, help="JSON, for programs")


def _acts(parser: argparse.ArgumentParser, action: str, *, default: str) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="these jobs, instead of filters")
    _filter_options(parser, default, STATUSES_FOR[action])
    parser.add_argument("--all", action="store_true", help=f"all jobs that are {default}, instead of ids and filters")
    parser.add_argument("--dry-run", action="store_true", help="only print how many jobs would be affected")
    _yes(parser)
    _operator(parser)
    _reads(parser)


def _yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation on a terminal")


def _operator(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the audit log."""
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit log")
    parser.add_argument("--by", metavar="WHO", help="who acts, for the audit log (default: your user and machine)")


def _filter_options(parser: argparse.ArgumentParser, default: str = "all", statuses: Sequence[str] = STATUSES) -> None:
    parser.add_argument("--queue", metavar="Q", help="only jobs of this queue")
    parser.add_argument("--job", metavar="NAME", help="only jobs of this type")
    parser.add_argument("--tag", metavar="TAG", help="only jobs that were sent with this tag")
    parser.add_argument(
        "--status",
        type=str.lower,
        action="append",
        choices=statuses,
        help=f"only jobs with this status; may be repeated (default: {default})",
    )
    parser.add_argument("--error", metavar="TEXT", help="only jobs whose last error or reason contains the text")
    parser.add_argument("--header", metavar="NAME[=VALUE]", help="only jobs with this header")
    parser.add_argument("--created-before", type=seconds, metavar="S", help="only jobs that were sent at least S seconds ago")
    parser.add_argument("--ended-before", type=seconds, metavar="S", help="only jobs that ended at least S seconds ago; also 90m, 12h, 7d")
    parser.add_argument("--poison", action="store_true", help="only jobs that ended as poison")


def _broker(parser: argparse.ArgumentParser, default: Any = None) -> None:
    parser.add_argument("--broker", default=default, metavar="URL", help="the broker's URL; see taskflow --help")


class _Help(argparse.Action):
    """Prints the help of a command, or of all commands. `const` is the parser of the program."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: str | None = None) -> None:
        assert isinstance(self.const, Parser)
        self.const.parse_args([*values, "--help"])


class _Version(argparse.Action):
    """Prints the version, which is looked up only on request."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"taskflow {version('taskflow-jobs')}", flush=True)
        parser.exit()
