"""`taskflow send JOB`: sends one job by its name."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from taskflow.app.app import App, default_app
from taskflow.app.bulk_actions import CallBrokerOnce, recorded
from taskflow.app.flow import Call
from taskflow.app.job import NamedJob
from taskflow.app.sending import send_call
from taskflow.cli.command import operator, suggestion, with_store
from taskflow.cli.exit_codes import Exit
from taskflow.cli.modules import import_targets
from taskflow.cli.terminal import show, warn
from taskflow.model.errors import CodecError, ConfigurationError, UnknownArgument
from taskflow.model.printable import one_line


def send(arguments: argparse.Namespace) -> int:
    default_app().flag(broker=arguments.broker)
    import_targets(arguments.modules)
    return with_store(_send, arguments)


async def _send(app: App, arguments: argparse.Namespace) -> int:
    call = _call(app, arguments)
    async with recorded(CallBrokerOnce(app.broker()), "send", names=(call.id,), which={"job": call.job}, **operator(arguments)) as doing:
        handle = await send_call(app, call)
        doing.affected = int(handle.is_new)
    show(arguments, {"id": handle.id, "job": call.job, "new": handle.is_new}, [handle.id])
    if not handle.is_new:
        warn(f"nothing was sent: live job {handle.id} has the key {one_line(call.key)}")
    elif not arguments.modules:
        await _warn_of_unknown_job(app, call.job)
    return Exit.OK


def _call(app: App, arguments: argparse.Namespace) -> Call[Any]:
    job = _job(app, arguments)
    if arguments.modules and app.registry.get(job.name) is None:
        hint = suggestion(job.name, app.registry.names) or "; to send it anyway, leave out --module"
        raise ConfigurationError(f"{', '.join(arguments.modules)}: no job named {one_line(job.name)}{hint}")
    try:
        return job._call_from_json(_json_of(arguments.args))
    except UnknownArgument as error:
        raise ConfigurationError(f"--args: {error.path}: {one_line(job.name)} has no such parameter") from error
    except CodecError as error:
        raise ConfigurationError(f"--args: {error}") from error
    except (TypeError, ValueError) as error:  # the job's key cannot be computed from these arguments
        raise ConfigurationError(str(error)) from error


def _job(app: App, arguments: argparse.Namespace) -> NamedJob:
    """Return the job with its options. Raises ConfigurationError, naming the argument or the option."""
    name = "JOB"
    try:
        job = NamedJob(app, arguments.job)
        name = "--queue"
        job = job.options(queue=arguments.queue)
        name = "--key"
        return job.options(after=arguments.after, key=arguments.key)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _json_of(text: str) -> bytes:
    """Return the JSON of `--args`, or of stdin for "-". Raises ConfigurationError if it is not a JSON object."""
    try:
        body = (sys.stdin.read() if text == "-" else text).encode()
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"""--args is not JSON: {error}; quote it for the shell, as in --args '{{"x": 1}}'""") from error
    if not isinstance(given, dict):
        raise ConfigurationError(f'--args: expected a JSON object with parameter names, such as {{"x": 1}}, got {json.dumps(given)[:100]}')
    return body


async def _warn_of_unknown_job(app: App, name: str) -> None:
    """Warn if workers are running but none of them knows the job. Usually, the name contains a typo."""
    alive = [worker.session.jobs for worker in await app.broker().admin.workers() if worker.is_alive]
    known = {job for jobs in alive for job in jobs}
    if alive and all(alive) and name not in known:
        warn(f"no running worker knows {one_line(name)}{suggestion(name, known)}")
