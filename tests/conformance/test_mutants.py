"""The suite detects what it should: a broken broker fails the clauses named for its defect.

`python -m tests.conformance` also checks that it passes all others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple

import pytest

from taskflow.broker.postgres import sql_files
from taskflow.broker.postgres.transactional import PostgresTransactional
from taskflow.broker.redis import scripts
from taskflow.broker.transactional import Row, Statement
from tests.conformance import clauses
from tests.conformance.mutants import ENGINES, MUTANTS, Mutant, harness_of
from tests.support.changes import Changed
from tests.support.harnesses import MemoryHarness, PostgresHarness, RedisHarness

pytestmark = pytest.mark.unmeasured  # the clauses' own runs are measured


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
@pytest.mark.sampled(4)
def test_a_mutant_fails_its_clauses(mutant: type[Mutant]) -> None:
    """At least one test of each named clause fails."""
    assert clauses.failing(harness_of(mutant), of=mutant.breaks).keys() == mutant.breaks


@pytest.mark.parametrize("mutant", ENGINES, ids=lambda mutant: mutant.name)
@pytest.mark.sampled(4)
def test_a_changed_engine_fails_its_clauses(mutant: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.apply(monkeypatch)

    assert clauses.failing(MemoryHarness, of=mutant.breaks).keys() == mutant.breaks


def test_every_mutant_breaks_a_clause_of_the_contract() -> None:
    """Each names existing clauses, and says why it is worth trying."""
    claimed = [(mutant.breaks, mutant.because) for mutant in MUTANTS] + [(mutant.breaks, mutant.because) for mutant in ENGINES]

    assert all(breaks and breaks <= clauses.clauses() and because for breaks, because in claimed)


def test_every_clause_has_its_mutant() -> None:
    """Each clause has been seen to fail on the reference broker, except those that it cannot break.

    All stores share one class of waiters, and the reading of cursors. The reference broker has no tasks that could be cancelled, and no
    rows that could be spoilt. Its workers are in one process, which ends or stops as a whole; the clauses about that have mutants of the
    Redis scripts below. No program has a transaction in its memory: those clauses have mutants of the PostgreSQL functions.

    The reference broker has no limits, turns and flows: those clauses have mutants of the engine, and so has [schedule_extra].
    [gate_forgets] is implemented in two places: the index of waiting jobs, and the decision. On an engine without [gate_paused] its tests
    wait for minutes.
    """
    beginnings = ("gate_", "fair_", "flow_", "admin_flow", "admin_limits", "admin_set_limit", "schedule_alone", "schedule_extra")
    of_engines = (mutant.breaks for mutant in ENGINES if any(name.startswith(beginnings) for name in mutant.breaks))
    named = frozenset[str]().union(*(mutant.breaks for mutant in MUTANTS), *of_engines, IN_TRANSACTIONS)

    assert clauses.clauses() - named == {"listen_sticky", "listen_lasts", "unreadable_row", "page_refuses", "gate_forgets", "gate_paused"}


class Broken(NamedTuple):
    """A change of a Redis script, or of the functions in an SQL file."""

    section: str
    before: str
    after: str


class HastyRedis(RedisHarness):
    """Redis with short waits: here a missing nudge is the expected outcome."""

    wakes_within = 0.3


BY_CLAUSE: Final = {
    "nudge_full": Broken("claim", "call('ZREM', P .. 'waiting:' .. name, listener)", ""),
    "ended_told": Broken("publish_ends", "string.gmatch(listeners_of[n], '................')", "pairs({ ['0000000000000000'] = 1 })"),
}


@pytest.mark.parametrize("clause", BY_CLAUSE)
@pytest.mark.slow
def test_a_changed_redis_script_fails_its_clause(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, before, after = BY_CLAUSE[clause]
    sections = scripts._sections()
    assert before in sections[section]
    changed = sections | {section: sections[section].replace(before, after)}
    monkeypatch.setattr(scripts, "_sections", lambda: changed)
    scripts._script.cache_clear()
    try:
        noticed = clauses.failing(HastyRedis, of=[clause]).keys()
    finally:
        scripts._script.cache_clear()

    assert noticed == {clause}


IN_TRANSACTIONS: Final = {
    "within_commit": Broken("transactional", "VALUES (of_id, @.random_rev(), S.READY", "VALUES (of_id, @.random_rev(), S.HELD"),
    "within_rollback": Broken("transactional.py", "", "commits"),
    "within_savepoint": Broken("transactional.py", "", "commits"),
    "within_keys": Broken("transactional", "IF known IS NOT NULL OR replaces IS NOT TRUE THEN", "IF known IS NOT NULL THEN"),
    "within_store": Broken("transactional.py", "", "does not check"),
    "within_open_key": Broken("transactional", "@ARRIVING | @BEHIND", "0"),
    "within_full": Broken("transactional", "jsonb_build_object('refused', 'full',", "jsonb_build_object("),
    "within_nudges": Broken("wakeups", "PERFORM pg_notify(listener, of_topic || E'\\nagain')", "PERFORM listener"),
    "complete_commit": Broken("transactional", "substr(fence, 1, 36) || decode('01', 'hex')", "fence"),
    "complete_rollback": Broken("transactional.py", "", "commits"),
    "complete_stale": Broken("transactional", " AND int8send(j.epoch) || j.session || j.claim || decode('00', 'hex') = fence", ""),
    "complete_open": Broken("apply", "f.id = ANY (jobs) FOR UPDATE SKIP LOCKED", "f.id = ANY (jobs) FOR UPDATE"),
    "complete_repeat": Broken("transactional", """THEN '{"settled": "ok"}'""", """THEN '{"settled": "committed"}'"""),
}


class BrokenHarness(PostgresHarness):
    """A schema with other functions, which is dropped at the end."""

    name = "broken-postgres"
    wakes_within = 0.3

    def remove(self) -> None:
        self._is_spoilt = True
        super().remove()


@pytest.mark.parametrize("clause", IN_TRANSACTIONS)
@pytest.mark.slow
@pytest.mark.sampled(3)
def test_a_changed_function_fails_its_clause(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, before, after = IN_TRANSACTIONS[clause]
    if before:
        text, functions = (sql_files.FOLDER / f"{file}.sql").read_text(encoding="utf-8"), sql_files.functions()
        assert text.count(before) >= 1
        functions[functions.index(text)] = text.replace(before, after)
        monkeypatch.setattr(sql_files, "functions", lambda: functions)
    elif after == "commits":
        monkeypatch.setattr(PostgresTransactional, "_call", _committing(PostgresTransactional._call))
    else:
        monkeypatch.setattr(PostgresTransactional, "_check", lambda self: _no_steps())

    assert clauses.failing(BrokenHarness, of=[clause]).keys() == {clause}


def _committing(call: Callable[..., Any]) -> Callable[..., Any]:
    """Commit the caller's transaction after each call."""

    def steps(*arguments: Any) -> Generator[Statement, Sequence[Row], Any]:
        answer = yield from call(*arguments)
        yield Statement("COMMIT")
        yield Statement("BEGIN")
        return answer

    return steps


def _no_steps() -> Generator[Statement, Sequence[Row], None]:
    yield from ()
