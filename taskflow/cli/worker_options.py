"""The options of `taskflow worker`. Like the parser, this module imports little besides argparse."""

from __future__ import annotations

import argparse
from typing import Any, Final

from taskflow.cli.option_types import port, positive, processes, seconds, size, ttl

PREFIX: Final = "TASKFLOW_WORKER_"
"""The beginning of the names of environment variables with settings, see `worker_settings`."""


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `taskflow worker`, except its modules and its broker."""
    parser.add_argument("--queues", metavar="Q[=W],...", help="a,b: in strict order; a=3,b=1: weighted (default: every queue)")
    parser.add_argument(
        "--concurrency", type=positive, default=100, metavar="N", help="the number of jobs to run at the same time (default: 100)"
    )
    parser.add_argument("--drain", action="store_true", help="exit when the queues are empty, with 1 if a job has failed")
    parser.add_argument(
        "--drain-horizon", type=seconds, default=60.0, metavar="S", help="with --drain, wait for jobs due within S seconds (default: 60)"
    )
    parser.add_argument(
        "--grace", type=seconds, default=25.0, metavar="S", help="seconds that runs have to finish when stopping (default: 25)"
    )
    parser.add_argument(
        "--ttl",
        type=ttl,
        default=20.0,
        metavar="S",
        help="seconds without a heartbeat after which other workers take its jobs (default: 20)",
    )
    parser.add_argument(
        "--start-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds to wait at the start for a broker that does not answer; then exit with 3 (default: 30; 0: at once)",
    )
    parser.add_argument(
        "--stall-limit",
        type=seconds,
        default=300.0,
        metavar="S",
        help="seconds for which a job may block the event loop; then exit with 5, and other workers take its jobs "
        "(default: 300; 0: no limit)",
    )
    _health(parser)
    _supervised(parser)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", type=str.lower, default="info", choices=levels, help="default: info")
    parser.add_argument("--log-format", type=str.lower, default="text", choices=("text", "json"), help="default: text")


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--health-port", type=port, metavar="PORT", help="answer /live and /ready over HTTP (0: any free port)")
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
        "--processes", action=_Supervise, type=processes, metavar="N", help="run N worker processes, each with --concurrency jobs"
    )
    group.add_argument("--max-jobs", action=_Supervise, type=positive, metavar="N", help="replace a worker that has run N jobs")
    group.add_argument(
        "--max-memory",
        action=_Supervise,
        type=size,
        metavar="BYTES",
        help="replace a worker that uses more memory, for example 512M or 1G",
    )
    group.add_argument(
        "--reload", action=_Supervise, nargs=0, default=False, help="replace workers when a Python file in this folder changes"
    )


class _Supervise(argparse.Action):
    """Selects the supervisor if one of its flags is given. Without them, the command runs the worker itself."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.module = "supervise"
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
