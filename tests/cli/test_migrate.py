"""`taskflow migrate`: what it says, and how it ends. What it does: tests/stores/test_migrations.py."""

from __future__ import annotations

import pytest

from taskflow.broker.postgres.schema import VERSION
from tests.cli.inprocess import Cli
from tests.support.postgres import shared_postgres


@pytest.fixture
def url() -> str:
    """A database without a schema."""
    return shared_postgres().url(shared_postgres().new_database())


def test_it_applies_what_is_pending(cli: Cli, url: str) -> None:
    assert cli("migrate", "--broker", url).out == f"schema 'taskflow': created, version {VERSION}\n"
    assert cli("migrate", "--broker", url).out == f"schema 'taskflow' is up to date (version {VERSION})\n"
    assert cli("migrate", "--plan", "--broker", url).out == f"schema 'taskflow' is up to date (version {VERSION})\n"
    assert "workers    0" in cli("status", "--broker", f"{url}?migrate=0").out


def test_it_makes_what_is_not_there(cli: Cli) -> None:
    server = shared_postgres()
    url = server.url(server.new_database()) + "?namespace=shop"

    assert "schema 'shop' does not exist yet; pending:\n  1  The tables.\n" in cli("migrate", "--plan", "--broker", url).out
    assert cli("migrate", "--broker", f"{url}&migrate=0").out == f"schema 'shop': created, version {VERSION}\n"


def test_a_plan_changes_nothing(cli: Cli, url: str) -> None:
    """It lists the steps and says how to go on."""
    for _ in range(2):
        said = cli("migrate", "--plan", "--broker", url)
        assert said.out == (
            f"schema 'taskflow' does not exist yet; pending:\n  {VERSION}  The tables.\n"
            "to apply: taskflow migrate; to see the SQL: taskflow migrate --sql\n"
        )


def test_the_sql_is_printed_and_not_run(cli: Cli, url: str) -> None:
    for _ in range(2):
        said = cli("migrate", "--sql", "--broker", url)
        assert said.out.startswith(f"-- taskflow, schema 'taskflow': from version 0 to {VERSION}.")
        assert said.out.endswith("\n\nCOMMIT;\n")


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1"])
def test_the_others_need_none(cli: Cli, url: str) -> None:
    """They are not even asked: no server has to be there."""
    scheme = url.partition(":")[0]
    says = f"{scheme}:// needs no migrations: the first use creates everything\n"
    assert cli("migrate", "--broker", url).out == says
    assert cli("migrate", "--plan", "--broker", url).out == says
    assert cli("migrate", "--sql", "--broker", url).out == f"-- {says}"  # which psql takes


def test_a_plan_and_the_sql_are_two_things(cli: Cli) -> None:
    assert "--sql: not allowed with argument --plan" in cli("migrate", "--plan", "--sql", code=2).err
