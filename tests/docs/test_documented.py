"""Every public name has its entry in the reference, and every guarantee its tests."""

from __future__ import annotations

import re

import pytest

import taskflow
from tests.docs.pages import ROOT


def test_every_public_name_is_in_the_reference_of_the_api() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE)) == taskflow.__all__


def test_every_guarantee_names_tests_that_exist() -> None:
    text = (ROOT / "docs/explanation/guarantees.md").read_text()
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./\.\./(tests/[\w/]+\.py)\)", text)
    assert [(test, file) for test, file in named if f"def {test}(" not in (ROOT / file).read_text()] == []
    promises = re.findall(r"^\*\*", text, re.MULTILINE)
    assert len(promises) == text.count("\nTested by ") >= 15


@pytest.mark.parametrize("folder", ["tutorial", "how-to", "explanation", "reference", "migrate"])
def test_the_index_of_a_folder_lists_its_pages(folder: str) -> None:
    """Sphinx could make the list, but GitHub shows the file as it is."""
    index = ROOT / "docs" / folder / "index.md"
    listed = re.findall(r"^(?:-|\d+\.) \[[^]]+\]\(([^/)]+)\)", index.read_text(), re.MULTILINE)
    assert sorted([*listed, "index.md"]) == sorted(page.name for page in index.parent.glob("*.md"))
