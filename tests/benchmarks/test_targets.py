"""A target is held or missed by what is kept, and the tables say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.kept import Kept, read_all
from benchmarks.report import BARE, OURS, Row
from benchmarks.summary import digest, headlines, studies, targets_table, workload
from benchmarks.targets import CHECKS, Check
from benchmarks.workloads import WORKLOADS


def kept(workload: str, *rows: Row, **conditions: str) -> dict[str, Kept]:
    return {workload: Kept(workload, "a workload", conditions, rows)}


def a_row(values: Mapping[str, Sequence[float]], *, part: str = "part", figure: str = "jobs/s") -> Row:
    return Row(part, part, figure, values)


def a_check(**bounds: object) -> Check:
    told: dict[str, object] = dict.fromkeys(("target", "what", "wanted"), "it")
    told |= {"workload": "w", "part": "part", "figure": "jobs/s", **bounds}
    return Check(**told)  # type: ignore[arg-type]


def is_held(check: Check, **values: Sequence[float]) -> bool:
    named = {{"ours": OURS, "bare": BARE}.get(name, name): told for name, told in values.items()}
    verdict = check.judge(kept("w", a_row(named)))
    assert verdict is not None
    return verdict.is_held


def test_what_was_not_measured_has_no_verdict() -> None:
    assert a_check(least=1.0).judge({}) is None
    assert a_check(least=1.0).judge(kept("w", a_row({OURS: [1.0]}, figure="CPU"))) is None


def test_a_peer_that_begins_planned_jobs_early_is_not_the_best_of_those_that_are_late() -> None:
    lags = a_row({OURS: [9.0], "hasty": [-200.0], "late": [50.0]}, figure="p99 ms")
    early = a_row({OURS: [0.0], "hasty": [30.0], "late": [0.0]}, figure="early")
    check = a_check(figure="p99 ms", most=10.0, small_is_good=True)
    verdict = check.judge(kept("w", lags, early))
    assert verdict is not None
    assert verdict.peer == ("late", 50.0)


def test_beside_nothing_there_is_no_ratio() -> None:
    """Of jobs that began early, for example."""
    [check] = [check for check in CHECKS if check.target == "T13" and check.workload == "redis-plans" and check.figure == "early"]
    table = targets_table(kept("redis-plans", a_row({OURS: [0.0], "taskiq": [0.0]}, part=check.part, figure="early")))
    assert "taskiq 0 |" in table


@pytest.mark.parametrize(
    ("bounds", "ours", "held"),
    [({"least": 100.0}, 100.0, True), ({"least": 100.0}, 99.9, False), ({"most": 18.0}, 18.0, True), ({"most": 18.0}, 18.1, False)],
)
def test_a_figure_is_held_against_its_own_bound(bounds: dict[str, object], ours: float, held: bool) -> None:
    assert is_held(a_check(**bounds), ours=[ours]) is held


def test_medians_are_compared_with_the_bare_loop() -> None:
    assert is_held(a_check(by_bare=0.5), ours=[1.0, 50.0, 90.0], bare=[100.0, 100.0, 1.0])
    assert not is_held(a_check(by_bare=0.5), ours=[49.0], bare=[100.0])


def test_a_time_may_be_at_most_so_many_times_the_bare_loops() -> None:
    assert is_held(a_check(by_bare=1.3, small_is_good=True), ours=[1.3], bare=[1.0])
    assert not is_held(a_check(by_bare=1.3, small_is_good=True), ours=[1.4], bare=[1.0])


def test_a_bound_that_has_nothing_to_be_compared_with_does_not_hold() -> None:
    assert not is_held(a_check(by_bare=0.5), ours=[100.0])
    assert not is_held(a_check(by_peer=2.0), ours=[100.0])


def test_being_near_the_bare_loop_is_enough_where_that_is_said() -> None:
    check = a_check(most=0.65, or_by_bare=1.15, small_is_good=True)

    assert is_held(check, ours=[1.1], bare=[1.0])
    assert is_held(check, ours=[0.6], bare=[0.1])
    assert not is_held(check, ours=[1.2], bare=[1.0])


def test_what_stands_in_the_bare_loops_place_is_no_peer() -> None:
    rows = [a_row({OURS: [90.0], "the shallow queue": [100.0]})]
    verdict = a_check(by_bare=0.9, against="the shallow queue").judge(kept("w", *rows))

    assert verdict is not None
    assert (verdict.bare, verdict.peer, verdict.is_held) == (100.0, None, True)


def test_the_best_peer_counts() -> None:
    assert not is_held(a_check(by_peer=4.0), ours=[400.0], slow=[1.0], quick=[101.0])
    assert is_held(a_check(by_peer=4.0), ours=[404.0], slow=[1.0], quick=[101.0])


def test_a_peer_that_is_named_counts_alone() -> None:
    verdict = a_check(by_peer=3.0, peer="bullmq").judge(kept("w", a_row({OURS: [30.0], "bullmq": [10.0], "other": [1_000.0]})))

    assert verdict is not None
    assert verdict.is_held
    assert verdict.peer == ("bullmq", 10.0)


def test_peers_that_lose_jobs_and_those_in_node_are_no_safe_python_peers() -> None:
    check = a_check(by_peer=12.0, among="safe in Python")
    verdict = check.judge(kept("w", a_row({OURS: [60.0], "huey": [900.0], "bullmq": [900.0], "dramatiq": [5.0]})))

    assert verdict is not None
    assert verdict.peer == ("dramatiq", 5.0)
    assert verdict.is_held


def workers(one: float, two: float, worker_cpu: float, server_cpu: float) -> dict[str, Kept]:
    rows = [
        a_row({OURS: [one]}, part="1"),
        a_row({OURS: [worker_cpu]}, part="1", figure="worker CPU µs/job"),
        a_row({OURS: [server_cpu]}, part="1", figure="server CPU µs/job"),
        a_row({OURS: [two]}, part="2"),
    ]
    return kept("w", *rows)


def test_two_workers_are_beside_one_and_beside_what_two_cores_allow() -> None:
    found = workers(one=100.0, two=130.0, worker_cpu=20.0, server_cpu=10.0)

    by_one = a_check(part="2", value="of one worker", least=1.6).judge(found)
    of_the_bound = a_check(part="2", value="of the bound", least=0.9).judge(found)

    assert by_one is not None
    assert of_the_bound is not None
    assert by_one.value == pytest.approx(1.3)
    assert not by_one.is_held
    assert of_the_bound.value == pytest.approx(1.3 / (2 * 20 / 30))
    assert of_the_bound.is_held


def test_either_of_two_values_may_be_enough() -> None:
    found = workers(one=100.0, two=130.0, worker_cpu=20.0, server_cpu=10.0)
    verdict = a_check(part="2", value="of one worker", least=1.6, or_value="of the bound", or_least=0.9).judge(found)

    assert verdict is not None
    assert verdict.value == pytest.approx(1.3)
    assert verdict.is_held


def test_every_check_names_a_workload_that_there_is() -> None:
    assert {check.workload for check in CHECKS} <= set(WORKLOADS)


def test_every_target_but_the_one_that_judges_itself_has_a_check() -> None:
    assert list(dict.fromkeys(check.target for check in CHECKS)) == [f"T{number}" for number in (*range(1, 18), 19, 20, 21, 26, 28)]


def test_every_check_has_a_bound() -> None:
    bounds = [(check.least, check.most, check.by_bare, check.by_peer) for check in CHECKS]

    assert all(any(bound is not None for bound in each) for each in bounds)


def test_the_table_tells_what_is_held_what_is_missed_and_what_was_not_measured() -> None:
    rows = [a_row({OURS: [60_000.0], BARE: [100_000.0], "dramatiq": [4_000.0], "bullmq": [30_000.0]}, part="drain, 100 at a time")]

    table = targets_table(kept("redis-drain", *rows, commit="abc", machine="2 CPUs"))

    assert "commit abc; machine 2 CPUs." in table
    assert "| T1 Redis, jobs/s | ≥ 0.5 × bare | 60,000 jobs/s | 100,000, 0.60 | bullmq 30,000, 2.00 | held |" in table  # noqa: RUF001
    assert "| T1 Redis, safe Python peers | ≥ 12 × the best | 60,000 jobs/s | 100,000, 0.60 | dramatiq 4,000, 15.00 | held |" in table  # noqa: RUF001
    assert "| T1 Redis, BullMQ | ≥ 3 × | 60,000 jobs/s | 100,000, 0.60 | bullmq 30,000, 2.00 | **missed** |" in table  # noqa: RUF001
    assert "| T2 Postgres, jobs/s | ≥ 0.5 × bare | not measured | | | |" in table  # noqa: RUF001


def test_the_digest_has_a_line_for_what_was_measured_alone() -> None:
    rows = [a_row({OURS: [60_000.0], BARE: [100_000.0], "bullmq": [30_000.0]}, part="drain, 100 at a time")]

    lines = digest(kept("redis-drain", *rows, commit="abc")).splitlines()

    assert lines[0] == "commit abc."
    assert lines[-1] == "| Redis, jobs/s | 60,000 jobs/s | 100,000, 0.60 | bullmq 30,000, 2.00 |"
    assert len(lines) == 5


def test_the_pages_tell_what_is_kept() -> None:
    """A figure that was measured anew stands in the tables, and in all of them: `python -m benchmarks --summary --keep` writes them."""
    all_kept = read_all(results.FOLDER)
    told = results.README.read_text()

    assert [name for name, each in all_kept.items() if workload(each) not in told] == []
    assert f"{targets_table(all_kept)}\n\n{studies(results.FOLDER)}" in told
    assert digest(all_kept) in results.PERFORMANCE_PAGE.read_text()
    assert headlines(all_kept) in results.ROOT_README.read_text()


def test_the_verdicts_of_studies_are_their_tables_last_lines(tmp_path: Path) -> None:
    (tmp_path / "postgres-busy").mkdir()
    (tmp_path / "postgres-busy" / "table.md").write_text("| minute |\n\nMost backlog: 191 jobs. Target missed.\n")

    assert studies(tmp_path) == "- T18, `postgres-busy`: Most backlog: 191 jobs. Target missed."
