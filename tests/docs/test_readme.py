"""The README's two commands, and its size."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES, README, ROOT, blocks, name_of


def test_it_is_short() -> None:
    assert README.read_text().count("\n") <= 150


def test_the_second_command_is_what_ci_runs() -> None:
    """The first two bash blocks are one command each; CI runs the second's test command, measured, and parts of it on other Pythons."""
    demo, tests = (block.text.strip() for block in blocks(README, "bash")[:2])
    assert demo.endswith("taskflow demo")
    assert "\n" not in demo
    assert "\n" not in tests
    command = tests.rpartition(".venv/bin/python ")[2]
    assert command == "-m pytest -n auto"
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(rf'^step "\$bin/python" -m coverage run {command} -p no:cacheprovider$', ci, re.MULTILINE)
    assert re.search(rf'/bin/python" {command} ', ci)


def test_no_installation_of_what_is_not_published_is_advised() -> None:
    """Until 0.1.0 is published, the package comes from a clone. Pages and messages advise nothing else."""
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "taskflow").rglob("*.py")}
    pages = {name_of(page): page.read_text() for page in PAGES}
    advising = [name for name, text in (pages | sources).items() if re.search(r"pip install [^`\n]*taskflow-jobs", text)]
    assert advising == []
