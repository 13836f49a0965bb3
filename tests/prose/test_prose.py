"""Users read ordinary words in sentences that are neither long nor chopped up. Run `python -m tests.prose docs` to see what to mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prose.figures import HIGHEST_MEAN, choppy, figures, too_long, with_phrases
from tests.prose.sentences import PAGES, SOURCES, of_page, paragraphs_of, sentences, words


@pytest.mark.parametrize("kind", SOURCES)
def test_sentences_are_not_long_and_in_ordinary_words(kind: str) -> None:
    read = SOURCES[kind]()
    assert too_long(read) == []
    assert with_phrases(read) == []
    assert figures(read).mean <= HIGHEST_MEAN


MAX_CHOPPY = 5


def test_pages_are_not_chopped_into_short_sentences() -> None:
    assert len(found := [run for page in PAGES for run in choppy(paragraphs_of(page))]) <= MAX_CHOPPY, found


def test_three_short_sentences_in_a_row_are_choppy_and_a_longer_one_between_them_is_not() -> None:
    short, longer = "It runs.", "If it fails for good, the job keeps its arguments and its errors."
    assert choppy([[short, short, short]]) == ["It runs. It runs. It runs."]
    assert choppy([[short, short, longer, short, short], [short]]) == []


def test_running_text_is_split_at_the_ends_of_sentences() -> None:
    assert sentences("One goes. `Two` goes, e.g. here. taskflow runs") == ["One goes.", "`Two` goes, e.g here.", "taskflow runs"]


def test_a_phrase_is_found_with_its_reason() -> None:
    [found] = with_phrases(["It runs in a thread of its own."])
    assert "a separate thread" in found


PAGE = """\
# A long heading

See [the page](a/long/path.md) now.

```bash
ls -la
```

| a cell | two cells |
| :--- | :--- |
"""


def test_code_headings_and_targets_of_links_are_no_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert of_page(page) == ["See [the page] now.", "a cell", "two cells"]
    assert words("See [the page] now.") == 4
