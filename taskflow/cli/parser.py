"""The commands and their options. This module imports little besides argparse, so that `--help` responds at once."""

from __future__ import annotations

import argparse
from argparse import _StoreAction
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from taskflow.cli.base_parser import Parser, action_number, count, filled, fingerprint, interval, port, positive, seconds, stages, time
from taskflow.cli.exit_codes import TABLE, Exit
from taskflow.cli.worker_options import add_worker_options

# The commands of each group, the most used first, each with an example.
GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "run and send jobs": {
        "worker": "taskflow worker app.tasks --queues mail=3,default=1",
        "send": "taskflow send app.tasks.charge --args '{\"order_id\": 7}'",
        "check": "taskflow check app.tasks",
    },
    "show jobs, queues and workers": {
        "status": "taskflow status --watch",
        "jobs": "taskflow jobs --status failed --queue mail",
        "explain": "taskflow explain 01a20e69-e073-7000-9acc-49abe1cd4c9a",
        "flows": "taskflow flows 01a20e69-e073-7000-9acc-49abe1cd4c9a",
        "failures": "taskflow failures --queue mail",
        "queues": "taskflow queues",
        "workers": "taskflow workers",
        "metrics": "taskflow metrics --json",
        "audit": "taskflow audit --limit 10",
        "dashboard": "taskflow dashboard --port 8000",
    },
    "act on jobs, queues and schedules": {
        "retry": "taskflow retry --queue mail --error timeout",
        "run-now": 'taskflow run-now --job app.tasks.sync --reason "the service is back"',
        "cancel": 'taskflow cancel --tag import:42 --reason "wrong file"',
        "purge": "taskflow purge --ended-before 30d",
        "pause": "taskflow pause mail",
        "resume": "taskflow resume mail",
        "schedules": "taskflow schedules trigger nightly",
        "limits": "taskflow limits list app.tasks.charge",
    },
    "maintain the store": {"doctor": "taskflow doctor", "migrate": "taskflow migrate --plan"},
    "learn more": {
        "help": "taskflow help jobs",
        "demo": "taskflow demo --limit 100",
        "completion": "taskflow completion bash > ~/.local/share/bash-completion/completions/taskflow",
    },
}
_PAGES: Final = {"show jobs, queues and workers": "cli-reports", "act on jobs, queues and schedules": "cli-actions"}
# The actions of `taskflow schedules`, each with an example.
OF_SCHEDULES: Final[Mapping[str, str]] = {
    "list": "taskflow schedules list nightly",
    "trigger": "taskflow schedules trigger nightly",
    "pause": 'taskflow schedules pause nightly --reason "until the import is repaired"',
    "resume": "taskflow schedules resume nightly",
    "remove": "taskflow schedules remove nightly",
    "backfill": "taskflow schedules backfill nightly --from 2026-01-01 --to 2026-02-01 --dry-run",
    "next": 'taskflow schedules next "0 9 * * MON-FRI" --tz Europe/Paris',
}
# The actions of `taskflow limits`, each with an example.
OF_LIMITS: Final[Mapping[str, str]] = {
    "list": "taskflow limits list app.tasks.charge",
    "set": "taskflow limits set app.tasks.charge acme 10 --module app.tasks",
}
STATUSES: Final = ("held", "scheduled", "ready", "running", "succeeded", "failed", "cancelled")
# The statuses that each action can act on, as in `taskflow.app.bulk_actions`, which takes longer to import.
STATUSES_FOR: Final = {
    "retry": ("failed", "cancelled"),
    "run-now": ("scheduled",),
    "cancel": ("held", "scheduled", "ready", "running"),
    "purge": ("held", "scheduled", "ready", "succeeded", "failed", "cancelled"),
}
BROKER: Final = "the broker's URL (default: TASKFLOW_BROKER, which keeps passwords off the command line, else sqlite:///taskflow.db)"


def a_parser() -> Parser:
    """Return the parser. The `module` of the parsed arguments names the function that runs the command, as in `status:queues`."""
    parser = Parser(
        prog="taskflow", description="Background jobs for Python.", epilog=f"exit codes:\n{TABLE}\n\nmore: docs/reference/cli.md"
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.branch("command", required=True)
    examples = {name: (example, _PAGES.get(title, "cli")) for title, group in GROUPS.items() for name, example in group.items()}

    def command(name: str, module: str, summary: str, description: str, **defaults: Any) -> Parser:
        section = "pause-and-resume" if name in ("pause", "resume") else name
        added = commands.add_parser(name, help=summary, description=description, epilog=_epilog(*examples[name], section))
        added.set_defaults(module=module, **defaults)
        return added

    _add_runs(command)
    _add_reports(command)
    _add_actions(command)
    examine = "Check the store's settings, and its indexes. Exits with 1 if there is a problem."
    doctor = command("doctor", "doctor:doctor", "check whether jobs are safe in the store", examine)
    computes = "with workers stopped: recompute indexes and counts from the records, after another program has changed the store"
    doctor.add_argument("--rebuild", action="store_true", help=computes)
    _yes(doctor)
    _operator(doctor)
    bring = "Migrate the tables of PostgreSQL or SQLite to the version that this taskflow needs."
    migrate = command("migrate", "doctor:migrate", "migrate the store's tables to this version", bring)
    instead = migrate.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="only list pending migrations")
    instead.add_argument("--sql", action="store_true", help="only print the SQL, for an administrator to run")
    for name, added in commands.choices.items():
        if name not in ("worker", "retry", "schedules", "limits"):  # these have more options, added below
            _add_output_options(added)
    index = "Index the Python files of this machine with one job per file, starting with the standard library."
    demo = command("demo", "demo:demo", "index this machine's Python files as jobs", index)
    demo.add_argument("--folder", metavar="DIR", help="the folder for the queue's file, which is kept (default: a new temporary folder)")
    _limit(demo, 3000, "use at most N files")
    serves = "Serve the dashboard to one browser. The first line of output is the URL to open: its token works once."
    pages = command("dashboard", "dashboard:dashboard", "show the store in a browser", serves)
    only_here = "listen on this address (default: 127.0.0.1, which other machines cannot reach)"
    pages.add_argument("--host", default="127.0.0.1", metavar="HOST", help=only_here)
    pages.add_argument("--port", type=port, default=0, metavar="N", help="listen on this port (default: any free one)")
    _broker(pages)
    completes = "Print a script that completes commands and options."
    shells = command("completion", "parser:completion", "print a completion script for a shell", completes)
    shells.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    topic = command("help", "", "show the help of a command", "Show the help of a command, as its option --help does.")
    words = (*commands.choices, *OF_SCHEDULES, *OF_LIMITS)
    topic.add_argument("topic", nargs="*", choices=words, action=_Help, const=parser, metavar="COMMAND", help="the command")
    parser.list_commands(GROUPS)
    shared = parser.add_argument_group("an option of most commands")
    shared._group_actions.append(_StoreAction(["--broker"], "broker", metavar="URL", help=BROKER))
    return parser


def _epilog(example: str, page: str, section: str) -> str:
    return f"example:\n  {example}\n\nmore: docs/reference/{page}.md#taskflow-{section}"


def _add_runs(command: Callable[..., Parser]) -> None:
    worker = command("worker", "worker:run", "run the jobs of modules", "Run the jobs that the modules declare.", supervisor=None)
    _modules(worker)
    _broker(worker)
    add_worker_options(worker)
    send = command("send", "send:send", "send a job by its name", "Send one job by its name, and print its id.")
    send.add_argument("job", metavar="JOB", help="the job's name, such as app.tasks.charge")
    given = "its arguments as a JSON object, such as '{\"x\": 1}'; - reads stdin"
    send.add_argument("--args", default="{}", metavar="JSON", help=given)
    module = "import this module, so that the arguments are checked here and the options of @job apply; may be repeated"
    send.add_argument("--module", dest="modules", action="append", default=[], metavar="MODULE", help=module)
    send.add_argument("--queue", metavar="Q", help="send it to this queue")
    send.add_argument("--after", type=seconds, metavar="S", help="run it in S seconds or later; also 90m, 12h, 7d")
    send.add_argument("--key", metavar="K", help="send nothing if a live job has this key, and print the id of that job")
    _operator(send)
    fits = "Check whether the waiting and running jobs would run with this code, without running any. Exits with 1 if a job would not."
    check = command("check", "check:check", "check whether the waiting jobs would run with this code", fits)
    _modules(check)
    check.add_argument("--queue", action="append", metavar="Q", help="only jobs of this queue; may be repeated")
    _limit(check, 10_000, "check N jobs of each queue")


def _add_reports(command: Callable[..., Parser]) -> None:
    status = command("status", "status:status", "show a summary of the store", "Show the queues and workers of the store.")
    watch = "show it every S seconds (default: 2) with rates, in place on a terminal, until Ctrl-C"
    status.add_argument("--watch", nargs="?", type=interval, const=2.0, metavar="S", help=watch)
    listing = "List jobs by status, or show those with the given ids."
    jobs = command("jobs", "jobs:jobs", "list jobs, or show some by id", listing, all=False)
    jobs.add_argument("ids", nargs="*", metavar="ID", help="show these jobs: arguments, result, runs on a timeline, error")
    _filter_options(jobs)
    _limit(jobs, 50, "list at most N jobs")
    jobs.add_argument("--cursor", metavar="TEXT", help="list the next page: the cursor that the previous page printed")
    jobs.add_argument("--verbose", action="store_true", help="with ids: show long values, and the tracebacks of all errors")
    why = "Explain why jobs are in their current state, the cause first, and what to do about it."
    explain = command("explain", "explain:explain", "explain why a job has not run, or how it ended", why)
    explain.add_argument("ids", nargs="+", metavar="ID", help="the jobs")
    trees = "List the newest flows, or show flows as trees: below each job are the jobs that it waits for."
    flows = command("flows", "flows:flows", "show flows, and what their jobs wait for", trees)
    flows.add_argument("ids", nargs="*", metavar="ID", help="the ids of flows, or of their jobs (default: list the newest flows)")
    flows.add_argument("--limit", type=positive, default=20, metavar="N", help="without ids: list at most N flows (default: 20)")
    causes = "List the causes of failed jobs, the most frequent first."
    failures = command("failures", "reports:failures", "list failed jobs by their cause", causes, status=None, poison=False)
    _queue_and_job(failures)
    failures.add_argument("--tag", metavar="TAG", help="only jobs with this tag")
    failures.add_argument("--ended-before", type=seconds, metavar="S", help="only jobs that failed at least S seconds ago")
    failures.add_argument("--deploy", metavar="D", help="only groups with failures on this deploy, the most frequent there first")
    command("queues", "status:queues", "list queues and their counts", "List every queue with its counts.")
    fleet = "List the running workers: busy slots, heartbeat, jobs, deploy and queues."
    command("workers", "status:workers", "list the running workers", fleet)
    events = "Show how often each event has occurred since the store was created."
    counts = command("metrics", "reports:metrics", "count events by queue", events)
    counts.add_argument("--prometheus", action="store_true", help="print queues, events and workers in the format of Prometheus")
    log = "List what operators did to jobs, queues and schedules, the newest first."
    audit = command("audit", "reports:audit", "list what operators did", log)
    _limit(audit, 50, "list at most N actions")
    audit.add_argument("--before", type=action_number, metavar="N", help="list actions older than number N: the next page")


def _add_actions(command: Callable[..., Parser]) -> None:
    again = "Make failed and cancelled jobs ready again."
    retry = command("retry", "job_actions:act", "run failed or cancelled jobs again", again)
    _acts(retry, "retry", default="failed")
    _add_output_options(retry)
    group = retry.add_argument_group("one cause", "Retry the failed jobs of one cause in stages, and stop when one of them fails again.")
    group.add_argument("--group", type=fingerprint, metavar="G", help="the jobs of this group of `taskflow failures`")
    group.add_argument("--canary", type=positive, default=0, metavar="N", help="first retry N jobs, and wait until they have ended")
    group.add_argument("--then", type=stages, default=(), metavar="N,...", help="the sizes of further stages, such as 10,100,all")
    group.add_argument("--rate", type=positive, metavar="N", help="retry at most N jobs a second")
    group.add_argument("--wait", type=seconds, default=300.0, metavar="S", help="stop if a stage takes more than S seconds (default: 300)")
    early = "Make jobs ready that are waiting for their time or their next attempt. Limits, pauses and the order of keys still apply."
    _acts(command("run-now", "job_actions:act", "run scheduled jobs now", early), "run-now", default="scheduled")
    stop = "Cancel waiting jobs at once, and ask running ones to stop."
    _acts(command("cancel", "job_actions:act", "cancel jobs", stop), "cancel", default="held, scheduled, ready and running")
    drop = "Drop ended jobs; with --status, cancel and drop waiting ones. Running jobs are not affected."
    _acts(command("purge", "job_actions:act", "drop jobs", drop), "purge", default="ended")
    for action, meaning in (("pause", "stop starting jobs of queues, or jobs by name"), ("resume", "end a pause")):
        pause = command(action, "job_actions:act", meaning, f"{meaning[0].upper()}{meaning[1:]}.")
        pause.add_argument("names", nargs="*", metavar="QUEUE", help=f"the queues to {action}")
        pause.add_argument(
            "--job", type=filled, action="append", default=[], metavar="NAME", help=f"a job to {action} in all queues, by its name"
        )
        _operator(pause)
    numbers = "List the limits that hold up jobs, or set a number. Without an action, list all of them."
    _limits(command("limits", "limits:list_limits", "list limits, or set their numbers", numbers))
    regular = "List schedules, or act on them. Without an action, list all of them."
    _schedules(command("schedules", "schedules:list_schedules", "list schedules, or act on them", regular))


def _modules(parser: Parser) -> None:
    named = "a module that declares jobs, for example app.tasks (default: the modules of [tool.taskflow.worker] in pyproject.toml)"
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=named)
    parser.add_argument("--all-submodules", action="store_true", help="import every module of packages")


def _schedules(parser: Parser) -> None:
    _add_output_options(parser)
    actions = parser.branch("action", required=False)
    parser.otherwise = "; to show one schedule: taskflow schedules list NAME"
    parser.set_defaults(action="list", names=[])

    def action(name: str, module: str, summary: str) -> Parser:
        description = f"{summary[0].upper()}{summary[1:]}."
        added = actions.add_parser(
            name, help=summary, description=description, epilog=_epilog(OF_SCHEDULES[name], "cli-actions", "schedules")
        )
        added.set_defaults(module=f"schedules:{module}")
        if name != "next":
            added.add_argument("names", nargs="*" if name == "list" else "+", metavar="NAME", help="the schedules")
        return added

    _add_output_options(action("list", "list_schedules", "list all schedules, or show the named ones in full"), argparse.SUPPRESS)
    for name, summary in (
        ("trigger", "add a job for each schedule now; their next times still fire"),
        ("pause", "stop schedules"),
        ("resume", "end a pause; times that passed during the pause do not fire"),
        ("remove", "remove schedules that no running worker declares"),
        ("backfill", "add a job for each time of the schedules in a time span"),
    ):
        acting = action(name, "act", summary)
        if name == "remove":
            _yes(acting)
        if name == "backfill":
            start = "the start of the span, included; ISO 8601, in the schedule's time zone unless it names an offset"
            acting.add_argument("--from", dest="start", type=time, required=True, metavar="TIME", help=start)
            acting.add_argument("--to", dest="end", type=time, required=True, metavar="TIME", help="the end of the span, excluded")
            _limit(acting, 1000, "add nothing if a schedule has more than N times")
            acting.add_argument(
                "--dry-run", action="store_true", help="only print how many jobs would be added, and the first and last time"
            )
        _operator(acting)
        _add_output_options(acting, argparse.SUPPRESS)
    following = action("next", "next_times", "compute times, without a broker")
    following.add_argument("expression", nargs="*", metavar="EXPRESSION", help='a cron expression in quotes, such as "0 9 * * MON-FRI"')
    following.add_argument("--every", type=seconds, metavar="SECONDS", help="an interval, instead of an expression")
    following.add_argument("--tz", default="UTC", metavar="ZONE", help="the time zone, such as Europe/Paris (default: UTC)")
    following.add_argument("--count", type=count, default=5, metavar="N", help="the number of times, at most 10000 (default: 5)")
    following.add_argument("--from", dest="start", type=time, metavar="TIME", help="start at this time in that zone (default: now)")
    _add_output_options(following, argparse.SUPPRESS, has_broker=False)
    parser.list_commands({"actions": OF_SCHEDULES})


def _limits(parser: Parser) -> None:
    _add_output_options(parser)
    actions = parser.branch("action", required=False)
    parser.otherwise = "; to show one limit: taskflow limits list NAME"
    parser.set_defaults(action="list", names=[])

    def action(name: str, module: str, summary: str) -> Parser:
        description = f"{summary[0].upper()}{summary[1:]}."
        added = actions.add_parser(name, help=summary, description=description, epilog=_epilog(OF_LIMITS[name], "cli-actions", "limits"))
        added.set_defaults(module=f"limits:{module}")
        return added

    listing = action("list", "list_limits", "list the limits that currently hold up jobs, or whose number was set")
    listing.add_argument("names", nargs="*", metavar="NAME", help="only limits with these names")
    _add_output_options(listing, argparse.SUPPRESS)
    setting = action("set", "set_limit", "set the number of a limit for one value of its key, overriding the code")
    setting.add_argument("name", metavar="NAME", help="the limit: the name of a job or of a Limit")
    setting.add_argument("key", nargs="?", metavar="KEY", help="the value of the limit's key, unless the limit counts all calls together")
    setting.add_argument("n", metavar="N", help='the number, or "declared" to restore the number in the code')
    module = 'import this module, which declares the limit, if the limit isn\'t in use or N is "declared"; may be repeated'
    setting.add_argument("--module", dest="modules", action="append", default=[], metavar="MODULE", help=module)
    _operator(setting)
    _add_output_options(setting, argparse.SUPPRESS)
    parser.list_commands({"actions": OF_LIMITS})


def _acts(parser: Parser, action: str, *, default: str) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="these jobs, instead of filters")
    _filter_options(parser, default, STATUSES_FOR[action])
    parser.add_argument("--all", action="store_true", help=f"all jobs that are {default}, instead of ids and filters")
    if action in ("retry", "cancel"):
        of_flow = (
            "all jobs of this flow (the flow can be retried for 300 s)"
            if action == "cancel"
            else "the failed jobs of this flow, and those that were cancelled with them"
        )
        parser.add_argument("--flow", metavar="ID", help=f"{of_flow}, instead of ids and filters")
    parser.add_argument("--dry-run", action="store_true", help="only print how many jobs would be affected")
    _yes(parser)
    _operator(parser)


def _filter_options(parser: Parser, default: str = "all", statuses: Sequence[str] = STATUSES) -> None:
    _queue_and_job(parser)
    parser.add_argument("--tag", metavar="TAG", help="only jobs that were sent with this tag")
    status = f"only jobs with this status; may be repeated (default: {default})"
    parser.add_argument("--status", type=str.lower, action="append", choices=statuses, help=status)
    parser.add_argument("--error", metavar="TEXT", help="only jobs whose last error or reason contains the text")
    parser.add_argument("--header", metavar="NAME[=VALUE]", help="only jobs with this header")
    parser.add_argument("--created-before", type=seconds, metavar="S", help="only jobs that were sent at least S seconds ago")
    parser.add_argument("--ended-before", type=seconds, metavar="S", help="only jobs that ended at least S seconds ago; also 90m, 12h, 7d")
    parser.add_argument("--poison", action="store_true", help="only jobs that ended as poison")


def _queue_and_job(parser: Parser) -> None:
    parser.add_argument("--queue", metavar="Q", help="only jobs of this queue")
    parser.add_argument("--job", metavar="NAME", help="only jobs of this type")


def _limit(parser: Parser, default: int, text: str) -> None:
    parser.add_argument("--limit", type=positive, default=default, metavar="N", help=f"{text} (default: {default})")


def _yes(parser: Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation on a terminal")


def _operator(parser: Parser) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit log")
    parser.add_argument("--by", metavar="WHO", help="who is acting, for the audit log (default: your user and machine)")


def _add_output_options(parser: Parser, default: Any = None, *, has_broker: bool = True) -> None:
    parser.add_argument("--json", action="store_true", default=default or False, help="print JSON, for programs")
    if has_broker:
        _broker(parser, default)


def _broker(parser: Parser, default: Any = None) -> None:
    parser.add_argument("--broker", default=default, metavar="URL", help="the broker's URL; see taskflow --help")


class _Help(argparse.Action):
    """Prints the help of a command, or of all commands. `const` is the program's parser."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: str | None = None) -> None:
        assert isinstance(self.const, Parser)
        self.const.parse_args([*values, "--help"])


class _Version(argparse.Action):
    """Prints the version, which is looked up only on request."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"taskflow {version('taskflow-jobs')}", flush=True)
        parser.exit()


def completion(arguments: argparse.Namespace) -> int:
    """Print a script that completes commands and options in a shell."""
    from taskflow.model.errors import ConfigurationError

    try:
        import shtab
    except ImportError:
        raise ConfigurationError("completion needs shtab: pip install shtab") from None
    print(shtab.complete(a_parser(), arguments.shell))
    return Exit.OK
