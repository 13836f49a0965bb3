"""What was measured is kept as JSON, read back, and shown in tables and plots."""

from __future__ import annotations

from pathlib import Path

from benchmarks import results
from benchmarks.kept import Kept, keep, read_all
from benchmarks.peers import environments
from benchmarks.peers.catalogue import PEERS
from benchmarks.report import BARE, OURS, Row
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
