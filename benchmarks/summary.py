"""The table of targets, with what was measured and whether each target is met, and the digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.charts import drains
from benchmarks.kept import Kept
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.report import BARE, OURS, Row, figure_text
from benchmarks.tables import tables
from benchmarks.targets import CHECKS, Check, Verdict

AllKept = Mapping[str, Kept]

STUDIES: Mapping[str, str] = {"postgres-busy": "T18", "postgres-backlog": "T14", "recovery": "Recovery", "rolling": "Deploys"}
"""The targets that studies with separate tables check."""

DIGEST: Sequence[str] = ("T1", "T2", "T3", "T8", "T9", "T11", "T12", "T13", "T14")
CHART: Final = "docs/throughput.svg"
"""The path of the README's chart, relative to the README."""


def targets_table(kept: AllKept) -> str:
    """Return a table with a line for each check of each target."""
    lines = [
        "| target | wanted | measured | bare loop (or what is said), ratio | best peer, ratio | |",
        "| :--- | :--- | ---: | ---: | ---: | :--- |",
    ]
    lines += [_line(f"{check.target} {check.what}", check, check.judge(kept)) for check in CHECKS]
    return "\n".join([_conditions(kept), "", *lines])


def workload(kept: Kept) -> str:
    """Return the conditions of a workload, and its tables."""
    told = "; ".join(f"{key} {value}" for key, value in kept.conditions.items())
    return f"**{kept.title}.** {told}.\n\n{tables(kept.rows)}"


def studies(folder: Path) -> str:
    """Return the verdict of each study whose results are in the folder: the last line of its table."""
    paths = {name: folder / name / "table.md" for name in STUDIES}
    verdicts = {name: path.read_text().rstrip().splitlines()[-1] for name, path in paths.items() if path.exists()}
    return "\n".join(f"- {STUDIES[name]}, `{name}`: {verdict}" for name, verdict in verdicts.items())


def digest(kept: AllKept) -> str:
    """Return a summary of about ten lines."""
    return f"{_conditions(kept)}\n\n{_figures(kept, DIGEST)}"


def headlines(kept: AllKept) -> str:
    """Return the README's text about speed: a chart, and a sentence for each store."""
    sentences = [
        f"On {store}, one worker runs {_rounded(row.median(OURS))} no-op jobs a second; {_peers(row)}."
        for store, row in drains(kept)
        if row.median(OURS)
    ]
    return "\n".join([f"![Jobs a second of one worker, beside other queues]({CHART})", "", *sentences])


def _peers(row: Row) -> str:
    rates = {name: rate for name in row.values if name not in (OURS, BARE) and (rate := row.median(name))}
    return ", ".join(f"{name} {_rounded(rate)}" for name, rate in sorted(rates.items(), key=lambda found: -found[1]))


def _rounded(rate: float | None) -> str:
    digits = 2 if rate else 0
    return f"{float(f'{rate or 0.0:.{digits}g}'):,.0f}"


def _figures(kept: AllKept, targets: Sequence[str]) -> str:
    heading = ["| | taskflow | bare loop, ratio | best peer, ratio |", "| :--- | ---: | ---: | ---: |"]
    firsts = [next(check for check in CHECKS if check.target == name) for name in targets]
    judged = [(check, verdict) for check in firsts if (verdict := check.judge(kept)) is not None]
    lines = [f"| {check.what} | {_measured(check, verdict)} | {_bare(verdict)} | {_peer(verdict)} |" for check, verdict in judged]
    return "\n".join([*heading, *lines])


def peers_table() -> str:
    """Return a table of the peers, and of what they lack."""
    heading = ["| peer | on | jobs at a time | has not | jobs of a killed worker |", "| :--- | :--- | ---: | :--- | :--- |"]
    lines = [f"| {_named(peer)} | {peer.store} | {_at_a_time(peer)} | {peer.lacks} | {peer.killed} |" for peer in PEERS]
    return "\n".join([*heading, *lines])


def _named(peer: Peer) -> str:
    return f"{peer.name} {peer.version}"


def _at_a_time(peer: Peer) -> str:
    return f"{peer.concurrency} threads" if peer.in_threads else f"{peer.concurrency}"


def _line(name: str, check: Check, verdict: Verdict | None) -> str:
    if verdict is None:
        return f"| {name} | {check.wanted} | not measured | | | |"
    outcome = "held" if verdict.is_held else "**missed**"
    return f"| {name} | {check.wanted} | {_measured(check, verdict)} | {_bare(verdict)} | {_peer(verdict)} | {outcome} |"


def _measured(check: Check, verdict: Verdict) -> str:
    return f"{figure_text(verdict.value)} {check.unit}".rstrip()


def _bare(verdict: Verdict) -> str:
    return "" if verdict.bare is None else f"{figure_text(verdict.bare)}, {verdict.value / verdict.bare:.2f}"


def _peer(verdict: Verdict) -> str:
    if verdict.peer is None:
        return ""
    name, value = verdict.peer
    return f"{name} {figure_text(value)}, {verdict.value / value:.2f}" if value else f"{name} {figure_text(value)}"


def _conditions(kept: AllKept) -> str:
    """Return the conditions of all workloads. If they differ, all values are listed."""
    found: dict[str, list[str]] = {}
    for one in kept.values():
        for key in ("commit", "date", "machine", "Python", "server", "libraries"):
            if (told := one.conditions.get(key)) and told not in found.setdefault(key, []):
                found[key].append(told)
    if dates := found.get("date"):
        found["date"] = [min(dates), max(dates)] if len(dates) > 1 else dates
    if libraries := found.get("libraries"):
        found["libraries"] = sorted({one for told in libraries for one in told.split(", ")})
    joined = {key: (" to " if key == "date" else ", ").join(told) for key, told in found.items()}
    return "; ".join(f"{key} {told}" for key, told in joined.items()) + "."
