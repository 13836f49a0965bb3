"""Users read short sentences in ordinary words. Run `python -m tests.prose docs` to see the sentences to mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prose.figures import HIGHEST_MEAN, figures, too_long, with_phrases
from tests.prose.sentences import SOURCES, of_page, sentences, words


@pytest.mark.parametrize("kind", SOURCES)
def test_sentences_are_short_and_in_ordinary_words(kind: str) -> None:
    read = SOURCES[kind]()
    assert too_long(read) == []
    assert with_phrases(read) == []
    assert figures(read).mean <= HIGHEST_MEAN


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
