"""Contenders are measured in turn; results are kept, judged by targets, and shown in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.kept import Kept, keep, read_all
from benchmarks.peers import environments
from benchmarks.peers.rivals import MAX_PROCESSES, Rivals
from benchmarks.report import BARE, OURS, Contender, ContenderFailed, Row, in_turn
from benchmarks.stores import REDIS, postgres
from benchmarks.summary import digest, headlines, studies, targets_table, workload
from benchmarks.tables import tables

# --- rows -------------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_their_medians_are_printed() -> None:
    said: list[str] = []

    def measure(name: str, values: list[float]):  # type: ignore[no-untyped-def]
        def once() -> dict[str, float]:
            said.append(name)
            return {"jobs/s": values.pop(0)}

        return once

    peers = [Contender("peer", measure("peer", [1.0, 2.0, 9.0]))]
    [row] = in_turn("drain", 3, measure(OURS, [10.0, 40.0, 20.0]), measure(BARE, [80.0, 40.0, 30.0]), peers)

    assert said == [OURS, BARE, "peer"] * 3
    assert (row.ours, row.least, row.most) == (20.0, 10.0, 40.0)
    assert row.bare == 40.0
    assert row.ratio == 0.5
    assert row.median("peer") == 2.0
    assert row.peers == ["peer"]


def test_a_peer_that_fails_is_reported_and_not_tried_again() -> None:
    tried: list[str] = []

    def hang() -> dict[str, float]:
        tried.append("hung")
        raise ContenderFailed("its worker began no job within 30 s")

    rows = in_turn("drain", 3, lambda: {"jobs/s": 1.0, "CPU": 2.0}, None, [Contender("hung", hang)])

    assert tried == ["hung"]
    assert [row.figure for row in rows] == ["jobs/s", "CPU"]
    assert all(row.failures == {"hung": "its worker began no job within 30 s"} for row in rows)
    assert all(row.peers == [] for row in rows)


# --- what is kept -----------------------------------------------------------------------------------------------------


def a_drain() -> list[Row]:
    values = {OURS: [10.0, 40.0, 20.0], BARE: [40.0, 40.0, 40.0], "peer": [5.0]}
    failures = {"hung": "its worker began no job within 30 s"}
    return [
        Row("drain", "20,000 queued", "jobs/s", values, failures),
        Row("drain", "20,000 queued", "worker CPU µs/job", {OURS: [18.0], BARE: [6.0]}, failures),
    ]


def test_kept_results_are_read_back_unchanged(tmp_path: Path) -> None:
    kept = Kept("redis-drain", "Redis: a worker drains", {"commit": "abc", "machine": "2 CPUs"}, a_drain())

    keep(kept, tmp_path)

    assert read_all(tmp_path) == {"redis-drain": kept}


def test_a_table_has_a_line_for_each_contender_and_a_word_for_each_that_failed() -> None:
    assert tables(a_drain()).splitlines() == [
        "| 20,000 queued | jobs/s | worker CPU µs/job | taskflow's jobs/s by its |",
        "| :--- | ---: | ---: | ---: |",
        "| **taskflow** | 20.0 (10.0–40.0) | 18.0 |  |",  # noqa: RUF001 - a span
        "| bare loop | 40.0 (40.0–40.0) | 6.00 | 0.50 |",  # noqa: RUF001 - a span
        "| peer | 5.00 |  | 4.00 |",
        "",
        "hung gave no figure: its worker began no job within 30 s.",
    ]


def test_everything_that_a_peer_brings_is_pinned_and_names_no_host() -> None:
    for pinned in (environments.HERE / "requirements").glob("*.txt"):
        assert all("==" in line for line in pinned.read_text().splitlines())
    for lock in (environments.HERE / "node").glob("*/package-lock.json"):
        assert "resolved" not in lock.read_text()
        assert "://" not in lock.read_text().replace('"url": "https://', "")


# --- targets ----------------------------------------------------------------------------------------------------------


def kept(workload: str, *rows: Row, **conditions: str) -> dict[str, Kept]:
    return {workload: Kept(workload, "a workload", conditions, rows)}


def a_row(values: Mapping[str, Sequence[float]], *, part: str = "part", figure: str = "jobs/s") -> Row:
    return Row(part, part, figure, values)


def test_the_table_shows_targets_as_met_missed_or_not_measured() -> None:
    rows = [a_row({OURS: [60_000.0], BARE: [100_000.0], "dramatiq": [4_000.0], "bullmq": [30_000.0]}, part="drain, 100 at a time")]

    table = targets_table(kept("redis-drain", *rows, commit="abc", machine="2 CPUs"))

    assert "commit abc; machine 2 CPUs." in table
    assert "| T1 Redis, jobs/s | ≥ 0.5 × bare | 60,000 jobs/s | 100,000, 0.60 | bullmq 30,000, 2.00 | held |" in table  # noqa: RUF001
    assert "| T1 Redis, safe Python peers | ≥ 12 × the best | 60,000 jobs/s | 100,000, 0.60 | dramatiq 4,000, 15.00 | held |" in table  # noqa: RUF001
    assert "| T1 Redis, BullMQ | ≥ 3 × | 60,000 jobs/s | 100,000, 0.60 | bullmq 30,000, 2.00 | **missed** |" in table  # noqa: RUF001
    assert "| T2 Postgres, jobs/s | ≥ 0.5 × bare | not measured | | | |" in table  # noqa: RUF001


def test_the_pages_show_the_kept_results() -> None:
    """A new measurement appears in all tables: `python -m benchmarks --summary --keep` writes them."""
    all_kept = read_all(results.FOLDER)
    told = results.README.read_text()

    assert [name for name, each in all_kept.items() if workload(each) not in told] == []
    assert f"{targets_table(all_kept)}\n\n{studies(results.FOLDER)}" in told
    assert digest(all_kept) in results.PERFORMANCE_PAGE.read_text()
    assert headlines(all_kept) in results.ROOT_README.read_text()


def test_peers_of_each_store_stand_beside_a_lone_job_among_idle_workers() -> None:
    """The variant that waits for results is shown where there is one, and never two variants of one program."""
    on_redis, on_postgres = ({peer.name for peer in Rivals().herds(store, MAX_PROCESSES)} for store in (REDIS, postgres()))
    assert on_redis >= {"dramatiq with results", "taskiq with results", "saq", "bullmq"}
    assert on_postgres >= {"pgqueuer", "oban"}
    assert on_redis.isdisjoint({"dramatiq", "taskiq", "huey", "celery"})
    assert not Rivals().herds(REDIS, MAX_PROCESSES + 1)
