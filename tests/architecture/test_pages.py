"""The pages for contributors name files that exist, and draw the floors as the imports have them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT

PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")])

_PATH = re.compile(r"`((?:taskflow|tests|benchmarks|docs|\.github|\.ci)/[\w./-]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    missing = [path for path in _PATH.findall(page.read_text()) if "NNNN" not in path and not (ROOT / path).exists()]
    assert missing == [], f"{name_of(page)} names files that are gone: name their present place"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    assert [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_decision_records_are_short_and_listed() -> None:
    """Each has at most 40 lines, so that it is read, and a number that no other one has."""
    records = sorted(ROOT.glob("docs/explanation/decisions/[0-9]*.md"))
    index = ROOT / "docs/explanation/decisions/README.md"
    assert [record.name for record in records if record.read_text().count("\n") > 40] == []
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    assert sorted(_LINK.findall(index.read_text())) == sorted([*(record.name for record in records), "../../../benchmarks/README.md"])
