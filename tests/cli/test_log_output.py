"""The worker's log: text for people, and one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import pytest

from taskflow.cli.log_output import JsonLines, TextLines
from tests.cli.inprocess import Cli

TASKS = """
import logging, warnings
from taskflow import JobContext, job

log = logging.getLogger("shop")

@job(queue="mail", max_attempts=1)
async def greet(ctx: JobContext, secret: str) -> str:
    log.info("in the async job %s", ctx.job_id)
    return "the result, secret too"

@job(max_attempts=1)
def greet_in_a_thread(secret: str) -> str:
    log.warning("in the thread")
    try:
        raise OSError("a detail")
    except OSError:
        log.exception("with its error")
    warnings.warn("an old way", DeprecationWarning)
    return "the result, secret too"

@job(max_attempts=1)
def fail(secret: str) -> None:
    raise ValueError("as asked")
"""

SECRET = "4711-not-for-logs"


@pytest.fixture
def lines(cli: Cli) -> list[dict[str, Any]]:
    """Return what a draining worker logs as JSON."""
    _sent(cli)
    said = cli("worker", "tasks", "--drain", "--log-format", "json", "--log-level", "debug", code=1)
    return [json.loads(line) for line in said.err.splitlines()]


def _sent(cli: Cli) -> None:
    cli.write("tasks.py", TASKS)
    tasks = cli.load("tasks")
    for job in (tasks.greet, tasks.greet_in_a_thread, tasks.fail):
        job.delay_sync(SECRET)


def of_job(lines: list[dict[str, Any]], job: str, logger: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("job") == job and line["logger"] == logger]


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_every_line_is_an_object_with_time_message_and_origin(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line["time"].endswith("+00:00")
    assert any(line["logger"] == "py.warnings" and "an old way" in line["message"] for line in lines)


def test_a_log_call_with_wrong_arguments_still_writes_one_line() -> None:
    record = logging.LogRecord("shop", logging.INFO, "shop.py", 1, "%d of them", ("many",), None)
    shown = json.loads(JsonLines().format(record))
    assert shown["message"].startswith("'%d of them', and its arguments do not fit: ")


def test_a_worker_under_a_supervisor_names_its_process_in_each_line() -> None:
    record = logging.LogRecord("shop", logging.INFO, "shop.py", 1, "a line", (), None)
    assert TextLines(has_pid=True).format(record).endswith(f" INFO    [{os.getpid()}] a line")
    assert json.loads(JsonLines(has_pid=True).format(record))["pid"] == os.getpid()
    assert "pid" not in json.loads(JsonLines().format(record))


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_lines_about_a_job_carry_its_fields(lines: list[dict[str, Any]]) -> None:
    for job, queue, words in (
        ("tasks.greet", "mail", "succeeded"),
        ("tasks.greet_in_a_thread", "default", "succeeded"),
        ("tasks.fail", "default", "failed for good after "),
    ):
        [ended] = [line for line in of_job(lines, job, "taskflow.worker") if words in line["message"]]
        assert (ended["queue"], ended["attempt"]) == (queue, 1)
        assert ended["job_id"] in ended["message"]


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_a_jobs_own_lines_carry_its_fields_too(lines: list[dict[str, Any]]) -> None:
    """They come from the loop and from a thread, through the root logger's own format, without any action of the job."""
    [inside] = of_job(lines, "tasks.greet", "shop")
    assert inside["message"] == f"in the async job {inside['job_id']}"
    assert (inside["queue"], inside["attempt"]) == ("mail", 1)
    in_thread = of_job(lines, "tasks.greet_in_a_thread", "shop")
    assert [line["message"] for line in in_thread[:2]] == ["in the thread", "with its error"]
    assert "OSError: a detail" in in_thread[1]["error"]
    assert len({line["job_id"] for line in in_thread}) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["text", "json"])
def test_neither_arguments_nor_results_are_logged(cli: Cli, form: str) -> None:
    _sent(cli)
    said = cli("worker", "tasks", "--drain", "--log-format", form, "--log-level", "debug", code=1)
    assert SECRET not in said.err + said.out
    assert "secret too" not in said.err + said.out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_text_lines_of_a_job_end_with_whose_they_are(cli: Cli) -> None:
    _sent(cli)
    said = cli("worker", "tasks", "--drain", code=1)
    [record] = [job for job in cli.jobs() if job["job"] == "tasks.greet"]
    assert f"in the async job {record['id']}  [tasks.greet {record['id']}]\n" in said.err
    assert f"tasks.greet {record['id']} (attempt 1, queue mail) succeeded after " in said.err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_line_names_the_worker_once_the_broker_knows_it(lines: list[dict[str, Any]]) -> None:
    [opened] = [index for index, line in enumerate(lines) if line["message"].startswith("working as ")]
    name = lines[opened]["message"].removeprefix("working as ")
    assert name.endswith(f":{os.getpid()}")
    assert {line.get("worker") for line in lines[:opened]} == {None}
    assert {line["worker"] for line in lines[opened + 1 :]} == {name}


TRACED = """
import logging
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from taskflow import configure, job
from taskflow.telemetry import OpenTelemetry

provider = TracerProvider()
configure(telemetry=[OpenTelemetry(provider)])

def log_the_span() -> None:
    span = trace.get_current_span().get_span_context()
    logging.getLogger("shop").info("%032x-%016x", span.trace_id, span.span_id)

@job
async def greet() -> None:
    log_the_span()

@job
def greet_in_a_thread() -> None:
    log_the_span()
"""


def test_lines_of_a_traced_run_carry_its_trace_and_span(cli: Cli) -> None:
    cli.write("tasks.py", TRACED)
    tasks = cli.load("tasks")
    for job in (tasks.greet, tasks.greet_in_a_thread):
        job.delay_sync()
    lines = [json.loads(line) for line in cli("worker", "tasks", "--drain", "--log-format", "json").err.splitlines()]
    traced = [line for line in lines if line["logger"] == "shop"]
    assert {line["job"] for line in traced} == {"tasks.greet", "tasks.greet_in_a_thread"}
    assert [f"{line['trace_id']}-{line['span_id']}" for line in traced] == [line["message"] for line in traced]
    assert len({line["span_id"] for line in traced}) == 2
    assert "trace_id" not in lines[0]
