"""`--json`: each command writes what docs/reference/cli-output.json says, whatever the store contains. Every `cli.json()` of other tests is
checked as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from taskflow.cli.base_parser import Parser
from taskflow.cli.parser import a_parser
from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.model.timetable import EveryTimes
from tests.cli.inprocess import Cli
from tests.cli.json_output import OF_SCHEDULES, SCHEMA, definition_of
from tests.cli.stock import Stock

NOBODY = id_text(bytes(16))


def commands(parser: Parser, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield every command that takes `--json`."""
    if any("--json" in action.option_strings for action in parser._actions):
        yield words
    for name, each in parser.commands.items():
        yield from commands(each, *words, name)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every description of an object in the schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        schema = list(schema.values())
    for each in schema if isinstance(schema, list) else ():
        yield from objects(each)


def test_the_schema_leaves_nothing_open() -> None:
    """Each object names all of its fields, or is a map from names to values of one type."""
    Draft202012Validator.check_schema(SCHEMA)
    for each in objects(SCHEMA):
        assert each.get("required") == (list(each["properties"]) if "properties" in each else None), each
        if "properties" in each and each is not SCHEMA["$defs"]["job_fields"]:  # others complete this one
            assert (each.get("additionalProperties"), each.get("unevaluatedProperties")).count(False) == 1, each


def test_each_command_with_json_is_documented_and_no_other() -> None:
    found = {definition_of(words) for words in commands(a_parser())} | {"jobs_by_id", "status_watch", "doctor_rebuild"}
    parts = {"queue", "worker", "job", "job_fields", "job_in_full", "limited_jobs", "totals", "status_of_job"}
    shared = parts | {"id", "time", "seconds", "count"}
    assert found | shared == set(SCHEMA["$defs"])
    assert {words[-1] for words in commands(a_parser()) if words[0] == "schedules" and words[1:]} == {*OF_SCHEDULES, "list", "next"}


LOOKING = ("status", "workers", "queues", "metrics", "jobs", "failures", "doctor", "schedules", "audit")


def test_commands_that_read_a_full_store_print_json_as_documented(cli: Cli, stock: Stock) -> None:
    for command in LOOKING:
        cli.json(command)
    assert len(cli.json("jobs", *stock.all)) == len(stock.all)
    assert len(cli.json("explain", *stock.all)) == len(stock.all)
    assert cli.json("migrate", "--plan")["migrations"] == []
    assert cli.json("schedules", "next", "30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-28", "--count", "3")


def test_commands_that_act_print_what_they_did_as_json(cli: Cli, stock: Stock) -> None:
    """Errors are text on stderr; the exit codes are the same as without `--json`."""
    told = cli.json("retry", stock.failed, stock.succeeded, NOBODY, code=4)
    assert (told["matching"], told["changed"], told["refused"]) == (
        3, 1, {"it has succeeded": 1, "it is unknown or no longer kept": 1},
    )  # fmt: skip
    assert [job["answer"] for job in told["jobs"]] == ["changed", *told["refused"]]
    told = cli.json("cancel", stock.running, stock.cancelled, "--dry-run", code=1)
    assert (told["dry_run"], told["matching"], told["changed"]) == (True, 1, 0)
    assert [job["answer"] for job in told["jobs"]] == ["asked to stop", "it was already cancelled"]
    assert cli.json("cancel", "--all", "--dry-run")["matching"] == 5
    told = cli.json("cancel", "--all")
    assert (told["matching"], told["changed"], told["asked"]) == (5, 4, 1)
    assert cli.json("purge", "--all", "--dry-run")["matching"] == cli.json("purge", "--all")["changed"] == 7
    assert cli.json("pause", "mail", "mial") == {
        "action": "pause",
        "queues": [{"name": "mail", "known": True}, {"name": "mial", "known": False}],
        "jobs": [],
    }
    assert cli.json("resume", "mail")["action"] == "resume"
    assert [act["action"] for act in cli.json("audit")] == ["resume", "pause", "purge", "cancel", "retry"]


def test_a_group_is_retried_with_its_stages(cli: Cli, stock: Stock) -> None:
    """Without a worker its first stage does not end."""
    group = min(cli.json("failures"), key=lambda group: group["sample"] != stock.failed)["id"]
    dry = cli.json("retry", "--group", group, "--canary", "1", "--dry-run")
    assert (dry["matching"], dry["stages"]) == (1, [{"jobs": 1, "changed": 0}])
    told = cli.json("retry", "--group", group, "--canary", "1", "--wait", "0", code=1)
    assert (told["changed"], told["stages"]) == (1, [{"jobs": 1, "changed": 1}])
    assert told["stopped"].startswith("1 job has not ended within 0 s")
    [act] = cli.json("audit")
    assert (act["action"], act["affected"], act["selection"]) == ("retry", 1, {"group": group})


def test_actions_on_schedules_print_what_they_did_as_json(cli: Cli, stock: Stock) -> None:
    template = Envelope(id=bytes(16), job="tick", payload=b"\x01")
    definition = SchedulePlan(times=EveryTimes(3600.0), template=template).to_definition("ticks")
    cli.with_broker(lambda broker: broker.define([definition]))
    [trigger, unknown] = cli.json("schedules", "trigger", "ticks", "tocks", code=4)["schedules"]
    assert trigger["job"] is not None
    assert "no schedule called 'tocks'" in unknown["problem"]
    span = ("--from", "2026-01-01T00:00Z", "--to", "2026-01-01T05:00Z")
    [foreseen] = cli.json("schedules", "backfill", "ticks", *span, "--dry-run")["schedules"]
    [done] = cli.json("schedules", "backfill", "ticks", *span)["schedules"]
    assert (foreseen["times"], foreseen["added"], done["added"]) == (5, 0, 5)
    assert (done["first"], done["last"]) == ("2026-01-01T00:00:00+00:00", "2026-01-01T04:00:00+00:00")
    for action in ("pause", "resume", "remove"):
        assert cli.json("schedules", action, "ticks")["schedules"][0]["problem"] is None
    assert cli.json("schedules", "list", "ticks", code=4) == []


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["jobs"], 3),
        (["audit"], 3),
        (["retry", NOBODY], 3),
        (["jobs", "x"], 2),
        (["cancel"], 2),
        (["purge", "--status", "running"], 2),
        (["migrate", "--sql"], 2),
        (["retry", "--group", "0" * 16, "--all"], 2),
        (["pause", "a b"], 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_command_that_fails_writes_no_document(cli: Cli, argv: list[str], code: int) -> None:
    said = cli(*argv, "--json", code=code)
    assert said.out == ""
    assert said.err.startswith(("taskflow: ", f"taskflow {argv[0]}: "))
