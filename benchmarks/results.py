"""Stores results: a folder for each study with raw figures as CSV, a table and a plot, and the generated blocks of the README."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
FOLDER: Final = HERE / "results"
README: Final = HERE / "README.md"
PERFORMANCE_PAGE: Final = HERE.parent / "docs" / "explanation" / "performance.md"
ROOT_README: Final = HERE.parent / "README.md"


def folder(name: str) -> Path:
    """Return the folder of a study, which is created if it is missing."""
    path = FOLDER / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. Numbers have thousands separators and are aligned to the right."""
    rows = list(rows)
    sides = [":---" if isinstance(value, str) and value else "---:" for value in (rows[0] if rows else headings)]
    lines = [headings, sides, *([_shown(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(name: str, table: str, has_plot: bool) -> None:
    """Store a study's table beside its plot, and write both into its block of the README."""
    (folder(name) / "table.md").write_text(table + "\n")
    plot = f"\n\n![{name}](results/{name}/plot.svg)" if has_plot else ""
    write_block(name, table + plot)


def write_block(name: str, content: str, readme: Path = README) -> None:
    """Replace a generated block of the README, or append the block if it is missing."""
    text = readme.read_text()
    begin, end = f"<!-- {name} writes this -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed:
        before, after = text + "\n", "\n"
    readme.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
