"""The reference has each command, option, exit code, setting, error and event of the code, and no invented ones."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from types import ModuleType
from typing import Final
from zoneinfo import ZoneInfo

import pytest

import taskflow
from taskflow import Cron, EnqueueOptions, TaskflowError, events
from taskflow.app import events as sender_events
from taskflow.app.options import DECORATOR_ONLY
from taskflow.app.settings import DEFAULT_BROKER, TEXTUAL, Settings
from taskflow.broker.url import SCHEMES
from taskflow.cli.exit_codes import MEANINGS
from taskflow.cli.parser import a_parser
from taskflow.cli.worker_options import PREFIX, SETTINGS as WORKER_SETTINGS
from taskflow.worker import events as worker_events
from taskflow.worker.children import messages as child_errors
from tests.docs import tables
from tests.docs.pages import ROOT

REFERENCE: Final = ROOT / "docs/reference"
CLI: Final = "".join((REFERENCE / f"{name}.md").read_text() for name in ("cli", "cli-reports", "cli-actions"))
COMMANDS: Final = a_parser().commands

# Options that several commands share stand in sections of their own.
SHARED: Final = ("Options of every command", "Selecting jobs for retry, run-now, cancel and purge", "Filters")


def section(page: str, title: str) -> str:
    """Return the text from a heading to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {title!r}"
    return found[2]


def rows(text: str) -> set[str]:
    """Return the names in the first cells of all tables."""
    cells = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^` ]+)(?: [^`]*)?`", cell)}


def options_of(command: str) -> set[str]:
    parsers = [COMMANDS[command], *COMMANDS[command].commands.values()]
    return {flag for parser in parsers for action in parser._actions for flag in action.option_strings}


def test_every_command_has_a_row_and_a_section() -> None:
    assert rows(CLI.partition("## Options of every command")[0]) == set(COMMANDS)
    for command in COMMANDS:
        assert section(CLI, f"taskflow {'pause and resume' if command in ('pause', 'resume') else command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_in_its_section_or_a_shared_one(command: str) -> None:
    own = section(CLI, f"taskflow {'pause and resume' if command in ('pause', 'resume') else command}")
    shared = "".join(section(CLI, title) for title in SHARED)
    assert options_of(command) <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", own + shared))


def test_no_option_is_invented() -> None:
    known = {flag for command in COMMANDS for flag in options_of(command)} | {"--version"}
    assert set(re.findall(r"`(--[a-z-]+)", CLI)) <= known


def test_the_defaults_of_a_worker_are_those_of_the_parser() -> None:
    shown = dict(re.findall(r"^\| `(--[a-z-]+)(?: [^`]*)?` \| ([^|]+) \|", section(CLI, "taskflow worker"), re.MULTILINE))
    parsed = {action.option_strings[-1]: action.default for action in COMMANDS["worker"]._actions if action.option_strings}
    numbers = {
        flag: f"{default:g}" for flag, default in parsed.items() if isinstance(default, int | float) and not isinstance(default, bool)
    }
    words = {flag: default for flag, default in parsed.items() if isinstance(default, str) and default is not argparse.SUPPRESS}
    assert {flag: shown[flag] for flag in numbers | words} == numbers | words


def test_every_action_on_schedules_has_a_row() -> None:
    own = section(CLI, "taskflow schedules")
    assert rows(own.partition("\nA row has")[0]) == set(COMMANDS["schedules"].commands)


def test_the_exit_codes_are_those_of_the_code() -> None:
    shown = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", section(CLI, "Exit codes"), re.MULTILINE))
    assert shown == {str(int(code)): meaning for code, meaning in MEANINGS.items()}


def test_the_settings_are_those_of_the_code() -> None:
    page, _, of_worker = (REFERENCE / "settings.md").read_text().partition("## Settings of `taskflow worker`")
    found = re.findall(r"^\| `([a-z_]+)` \| (?:`(TASKFLOW_\w+)`)? ?\| `?([^|`]+)`? \|", page, re.MULTILINE)
    assert {name for name, *_ in found} == set(Settings.__struct_fields__)
    shown = {variable: default.replace(",", "") for _, variable, default in found if variable}
    plain = Settings(broker=DEFAULT_BROKER)
    assert shown == {f"TASKFLOW_{name.upper()}": str(getattr(plain, name)) for name in TEXTUAL}
    named = re.findall(r"^\| `([a-z]+)` \| `(TASKFLOW_\w+)` \|", of_worker, re.MULTILINE)
    assert named == [(name, PREFIX + name.upper()) for name in WORKER_SETTINGS]


def test_every_option_of_a_call_and_of_the_decorator_has_a_row() -> None:
    page = (REFERENCE / "job-options.md").read_text()
    assert rows(section(page, "Options of a call: `.options()`")) == set(EnqueueOptions.__annotations__)
    assert rows(section(page, "Options of the decorator alone: `@job`")) == set(DECORATOR_ONLY)


def test_every_public_error_has_a_row_and_its_place_in_the_tree() -> None:
    page = (REFERENCE / "errors.md").read_text()
    errors = {name for name in taskflow.__all__ if inspect.isclass(kind := getattr(taskflow, name)) and issubclass(kind, TaskflowError)}
    assert set(re.findall(r"[├└]── (\w+)", page)) | {"TaskflowError"} == errors
    bases = {"TaskflowError", "JobError", "CodecError", "BrokerError"}
    assert errors - bases <= rows(page)


def test_every_error_type_of_a_record_has_a_row() -> None:
    page = section((REFERENCE / "errors.md").read_text(), "Error types in the record of a job")
    sources = "".join(file.read_text() for file in (ROOT / "taskflow").rglob("*.py"))
    children = {
        f"taskflow.{name}"
        for name, kind in vars(child_errors).items()
        if inspect.isclass(kind) and issubclass(kind, child_errors.ChildFailed)
    }
    assert rows(page) >= {*re.findall(r'"(taskflow\.[A-Z]\w+)"', sources), *children}


@pytest.mark.parametrize("page", ["errors.md", "sql.md"])
def test_each_error_says_what_to_do(page: str) -> None:
    tables = re.findall(r"^\| (?:exception|type|SQLSTATE) \|.*\n(?:\|.*\n)+", (REFERENCE / page).read_text(), re.MULTILINE)
    assert tables
    for table in tables:
        heading, _, *lines = (line.strip("| ").split(" | ") for line in table.splitlines())
        assert heading[2] == "what to do"
        assert [line for line in lines if len(line) != 3] == []


def kinds_of_events(*modules: ModuleType) -> dict[str, type[events.Event]]:
    """Return the events that can be imported from these modules, or from the public one."""
    found = (item for module in modules or (events,) for item in vars(module).items())
    return {name: kind for name, kind in found if inspect.isclass(kind) and issubclass(kind, events.Event)}


def test_every_event_has_a_row() -> None:
    kinds = kinds_of_events().keys()
    assert rows((REFERENCE / "events.md").read_text()) & kinds == kinds - {"Event", "WorkerEvent"}


def test_every_event_can_be_imported_from_one_module() -> None:
    assert kinds_of_events() == kinds_of_events(sender_events, worker_events)


def test_every_field_of_an_event_has_a_row_with_its_type_and_meaning() -> None:
    shown, event = list[tuple[str, str, str]](), ""
    for line in section((REFERENCE / "events.md").read_text(), "Fields").splitlines()[3:]:
        if found := re.fullmatch(r"\|(?: `(\w+)`)? \| `(\w+)` \| `([^`]+)`( or None)? \| [^|]+ \|", line):
            event = found[1] or event
            shown.append((event, found[2], f"{found[3]} | None" if found[4] else found[3]))
    real = [
        (kind.__name__, name, of_type) for kind in kinds_of_events().values() for name, of_type in inspect.get_annotations(kind).items()
    ]
    assert sorted(shown) == sorted(real)


@pytest.mark.parametrize(("title", "scheme"), [("SQLite", "sqlite"), ("Redis and Valkey", "rediss"), ("PostgreSQL", "postgresql")])
def test_the_options_of_a_broker_url_are_those_of_the_code(title: str, scheme: str) -> None:
    page = (ROOT / "docs/how-to/configure-a-broker.md").read_text()
    assert rows(section(page, title)) == set(SCHEMES[scheme])


def test_the_parameters_of_enqueue_in_sql_are_those_of_the_function() -> None:
    page = (REFERENCE / "sql.md").read_text()
    source = (ROOT / "taskflow/broker/postgres/sql_api.sql").read_text()
    declared = source.partition("FUNCTION @.enqueue(")[2].partition(") RETURNS")[0]
    assert rows(section(page, "`enqueue`")) == set(re.findall(r"^    (\w+) ", declared, re.MULTILINE))


@pytest.mark.parametrize(
    ("page", "table"),
    [("explanation/life-of-a-job.md", tables.moves), ("how-to/send-in-a-transaction.md", tables.connections)],
    ids=["moves", "connections"],
)
def test_a_table_is_made_from_the_code(page: str, table: Callable[[], str]) -> None:
    assert f"\n\n{table()}\n\n" in (ROOT / "docs" / page).read_text()


# --- public names and guarantees -------------------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference_of_the_api() -> None:
    pages = "".join(page.read_text() for page in (REFERENCE / "api").glob("*.md"))
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", pages, re.MULTILINE)) == taskflow.__all__


def test_every_guarantee_names_tests_that_exist() -> None:
    text = (ROOT / "docs/explanation/guarantees.md").read_text()
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./\.\./(tests/[\w/]+\.py)\)", text)
    assert [(test, file) for test, file in named if f"def {test}(" not in (ROOT / file).read_text()] == []
    promises = re.findall(r"^\*\*", text, re.MULTILINE)
    assert len(promises) == text.count("\nTested by ") >= 15


@pytest.mark.parametrize("folder", ["tutorial", "how-to", "explanation", "reference", "reference/api", "migrate"])
def test_the_index_of_a_folder_lists_its_pages(folder: str) -> None:
    """Sphinx could make the list, but GitHub shows the file as it is."""
    index = ROOT / "docs" / folder / "index.md"
    listed = re.findall(r"^(?:-|\d+\.) \[[^]]+\]\(([^/)]+)\)", index.read_text(), re.MULTILINE)
    assert sorted([*listed, "index.md"]) == sorted(page.name for page in index.parent.glob("*.md"))


# --- clock changes ---------------------------------------------------------------------------------------------------------


_ROWS: Final = re.findall(
    r"^\| (\w+/\w+) \| ([\d-]+) \| ([^|]*) \| `([^`]+)` \| ([^|]+) \|$", (ROOT / "docs/how-to/schedule-jobs.md").read_text(), re.MULTILINE
)


def fired_on(day: str, zone: ZoneInfo, expression: str) -> list[str]:
    at = datetime.fromisoformat(day).replace(tzinfo=zone).astimezone(UTC) - timedelta(microseconds=1)
    cron, found = Cron(expression, tz=zone), []
    while (following := cron.next(at)) is not None and following.astimezone(zone).date().isoformat() == day:
        at = following
        offset = at.astimezone(zone).strftime("%z")
        found.append(f"{at.astimezone(zone):%H:%M} {offset[:3]}:{offset[3:]}")
    return found


def test_there_are_changes_of_five_zones() -> None:
    assert len({zone for zone, *_ in _ROWS}) == 5


@pytest.mark.parametrize(("zone", "day", "change", "expression", "times"), _ROWS)
def test_a_schedule_fires_as_the_table_says(zone: str, day: str, change: str, expression: str, times: str) -> None:
    shown = list(takewhile(lambda time: time != "...", times.strip().split(", ")))
    fired = fired_on(day, ZoneInfo(zone), expression)
    assert (fired[: len(shown)] if times.strip().endswith("...") else fired) == shown


@pytest.mark.parametrize(("zone", "day", "change"), [row[:3] for row in _ROWS if row[2]])
def test_the_clock_changes_as_the_table_says(zone: str, day: str, change: str) -> None:
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    before, after = (begin + timedelta(hours=int(time[:2]), minutes=int(time[3:])) for time in change.strip().split(" → "))
    gained = (before - timedelta(minutes=1)).astimezone(UTC) + timedelta(minutes=1)
    assert gained.astimezone(begin.tzinfo).replace(tzinfo=None) == after.replace(tzinfo=None)
