"""What was measured is kept as JSON, read back, and shown in tables and plots."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.charts import draw
from benchmarks.kept import Kept, keep, read_all
from benchmarks.peers import environments
from benchmarks.peers.catalogue import PEERS, of_store
from benchmarks.report import BARE, OURS, Row, of_latencies
from benchmarks.tables import tables


def a_drain() -> list[Row]:
    values = {OURS: [10.0, 40.0, 20.0], BARE: [40.0, 40.0, 40.0], "peer": [5.0]}
    failures = {"hung": "its worker began no job within 30 s"}
    return [
        Row("drain", "20,000 queued", "jobs/s", values, failures),
        Row("drain", "20,000 queued", "worker CPU µs/job", {OURS: [18.0], BARE: [6.0]}, failures),
    ]


def test_what_is_kept_is_read_back_as_it_was(tmp_path: Path) -> None:
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


def test_parts_of_one_figure_share_a_table() -> None:
    rows = [Row(name, name, "jobs/s", {OURS: [2.0], BARE: [4.0]}) for name in ("memory", "sqlite")]

    assert tables(rows).splitlines() == [
        "| jobs/s | taskflow | bare loop | taskflow by bare loop |",
        "| :--- | ---: | ---: | ---: |",
        "| memory | 2.00 | 4.00 | 0.50 |",
        "| sqlite | 2.00 | 4.00 | 0.50 |",
    ]


def test_parts_of_ours_alone_share_a_table() -> None:
    rows = [Row(size, f"{size} bytes", figure, {OURS: [2.0]}) for size in ("100", "1000") for figure in ("jobs/s", "CPU")]

    assert tables(rows).splitlines() == [
        "|  | jobs/s | CPU |",
        "| :--- | ---: | ---: |",
        "| 100 bytes | 2.00 | 2.00 |",
        "| 1000 bytes | 2.00 | 2.00 |",
    ]


def test_percentiles_for_plots_are_no_columns_of_tables() -> None:
    rows = [Row("starts", "an idle worker", figure, {OURS: [value]}) for figure, value in of_latencies([0.001, 0.002]).items()]

    assert tables(rows).splitlines()[0] == "| an idle worker | p50 ms | p99 ms |"


def test_rates_are_drawn_as_bars_percentiles_and_sizes_as_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` draws plots; without it there are none")
    percentiles = [Row("starts", "an idle worker", figure, {OURS: [value]}) for figure, value in of_latencies([0.001, 0.002]).items()]
    along = [Row(f"{size}", f"{size} bytes", "jobs/s", {OURS: [1e6 / size]}) for size in (100, 1_000)]

    bars = draw(Kept("redis-drain", "", {}, a_drain()), tmp_path)
    curves = draw(Kept("redis-latency", "", {}, percentiles), tmp_path)
    sizes = draw(Kept("redis-payload", "", {}, along), tmp_path)

    assert [path.name for path in (*bars, *curves, *sizes)] == ["redis-drain.svg", "redis-latency-percentiles.svg", "redis-payload.svg"]
    for path in (*bars, *curves, *sizes):
        assert path.read_text().startswith("<?xml")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_block_of_a_readme_is_rewritten_and_the_rest_left(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n\n<!-- digest writes this -->\n\nold\n\n<!-- end of digest -->\n\nafter\n")

    results.write_block("digest", "new", readme)
    results.write_block("digest", "newer", readme)

    assert readme.read_text() == "before\n\n<!-- digest writes this -->\n\nnewer\n\n<!-- end of digest -->\n\nafter\n"


def test_every_peer_is_pinned_and_named_once() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert all(peer.version[0].isdigit() for peer in PEERS)
    assert {peer.store for peer in PEERS} == {"redis", "postgres"}


def test_everything_that_a_peer_brings_is_pinned_and_names_no_host() -> None:
    for pinned in (environments.HERE / "requirements").glob("*.txt"):
        assert all("==" in line for line in pinned.read_text().splitlines())
    for lock in (environments.HERE / "node").glob("*/package-lock.json"):
        assert "resolved" not in lock.read_text()
        assert "://" not in lock.read_text().replace('"url": "https://', "")


def test_only_the_peers_that_are_named_take_part() -> None:
    assert [peer.name for peer in of_store("redis", frozenset({"saq", "pgqueuer"}))] == ["saq"]
    assert of_store("redis", frozenset()) == []


def test_forgetting_removes_all_environments(tmp_path: Path) -> None:
    (tmp_path / "cache" / "saq-123").mkdir(parents=True)

    environments.forget(tmp_path / "cache")
    environments.forget(tmp_path / "cache")

    assert not (tmp_path / "cache").exists()
