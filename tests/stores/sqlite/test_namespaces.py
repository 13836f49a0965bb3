"""Several applications in one file."""

from __future__ import annotations

import re

import pytest

from taskflow.broker.sqlite import tables
from taskflow.broker.sqlite.statements import table_prefix
from taskflow.model.errors import SessionLost
from tests.stores.sqlite.support import Open, an_envelope, registered


async def test_they_do_not_see_each_other(open_broker: Open) -> None:
    one, two = open_broker(namespace="one"), open_broker(namespace="two")
    job = an_envelope()
    await one.enqueue([job])
    session = await registered(one)

    assert await two.read([job.id]) == [None]
    assert await two.console.queues() == []
    with pytest.raises(SessionLost):
        await two.claim(session.id, 1, [], 10)
    assert len(await one.claim(session.id, 1, [], 10)) == 1


@pytest.mark.parametrize(
    "namespace", ["sqlite", "sqlite_x", "A", "a", "a_jobs", "x.y-z", "1", "select", "n" * 100, "Sqlite", "^".join("a")]
)
async def test_any_name_will_do(open_broker: Open, namespace: str) -> None:
    """Also what SQLite keeps to itself, and what it takes for the same."""
    job = an_envelope()
    await open_broker(namespace=namespace).enqueue([job])
    await open_broker(namespace=namespace + "2" if len(namespace) < 100 else "m").enqueue([an_envelope()])
    [record] = await open_broker(namespace=namespace).read([job.id])
    assert record is not None


def test_no_two_names_share_tables() -> None:
    names = ["a", "A", "aA", "Aa", "AA", "sqlite", "Sqlite", "SQLITE", "sqlite_", "a_", "a__"]
    assert len({table_prefix(name).lower() for name in names}) == len(names)


def test_a_name_that_would_be_sql_is_refused(open_broker: Open) -> None:
    with pytest.raises(ValueError, match="characters"):
        open_broker(namespace='a"; DROP TABLE x; --')


def test_each_table_of_the_schema_counts_as_one_of_a_namespace() -> None:
    """Otherwise a second namespace is refused, because the first one's tables are taken for another program's."""
    assert set(re.findall(r'CREATE TABLE "~(\w+)"', tables.ddl())) == tables.names()
