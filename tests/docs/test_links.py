"""Every link between files leads to a file and to a heading of it, and bold text shows no asterisks.

`tests/nightly/nightly_links.py` checks the links to other sites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import PAGES, ROOT, name_of

WITH_LINKS: Final = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", *sorted(ROOT.glob(".github/*.md"))]

_CODE: Final = re.compile(r"^( *)```.*?^\1```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]+))?\)")


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_a_link_to_no_file_and_one_to_no_heading_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `A` b, c!\n\n[x](#a-b-c) [x](page.md#a-b-c) [x](gone.md) [x](#gone) [x](page.md#gone) `[x](code)`\n")
    assert list(broken(page)) == ["gone.md", "#gone", "page.md#gone"]


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_bold_text_has_its_marks_once(page: Path) -> None:
    assert re.findall(r"\*{4}.{,40}", _CODE.sub("", page.read_text())) == []


def broken(page: Path) -> Iterator[str]:
    for path, anchor in _LINK.findall(_CODE.sub("", page.read_text())):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{path}#{anchor}" if anchor else path


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page; those of Sphinx are alike. A repeated heading gets a number."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found
