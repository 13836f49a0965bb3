"""A target is held or missed by what is kept, and the tables say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


@pytest.mark.parametrize(
    ("bounds", "ours", "held"),
    [({"least": 100.0}, 100.0, True), ({"least": 100.0}, 99.9, False), ({"most": 18.0}, 18.0, True), ({"most": 18.0}, 18.1, False)],
)
def test_a_figure_is_held_against_its_own_bound(bounds: dict[str, object], ours: float, held: bool) -> None:
    assert is_held(a_check(**bounds), ours=[ours]) is held


def test_peers_that_lose_jobs_and_those_in_node_are_no_safe_python_peers() -> None:
    check = a_check(by_peer=12.0, among="safe in Python")
    verdict = check.judge(kept("w", a_row({OURS: [60.0], "huey": [900.0], "bullmq": [900.0], "dramatiq": [5.0]})))

    assert verdict is not None
    assert verdict.peer == ("dramatiq", 5.0)
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


def test_the_pages_tell_what_is_kept() -> None:
    """A figure that was measured anew stands in the tables, and in all of them: `python -m benchmarks --summary --keep` writes them."""
    all_kept = read_all(results.FOLDER)
    told = results.README.read_text()

    assert [name for name, each in all_kept.items() if workload(each) not in told] == []
    assert f"{targets_table(all_kept)}\n\n{studies(results.FOLDER)}" in told
    assert digest(all_kept) in results.PERFORMANCE_PAGE.read_text()
    assert headlines(all_kept) in results.ROOT_README.read_text()
