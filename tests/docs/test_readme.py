"""The README's quick start, its two commands, and its size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, README, ROOT, blocks, name_of


def test_it_is_short() -> None:
    assert README.read_text().count("\n") <= 150


@pytest.mark.slow
def test_the_quick_start_works_as_copied(tmp_path: Path) -> None:
    """All but the installation, which the two commands contain as well."""
    install, run = (block.text for block in blocks(README, "sh"))
    assert ".venv/bin/pip install --quiet .\n" in install
    tasks = blocks(README, "python")[0].text
    assert tasks.startswith("# app/tasks.py\n")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/tasks.py").write_text(tasks)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ran = subprocess.run(["bash", "-e"], input=run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "to a@example.com" in ran.stdout
    assert re.search(r"^\S+  succeeded  default +app\.tasks\.send_welcome_email  \d+s +1/3$", ran.stdout, re.MULTILINE)


def test_ci_runs_the_second_command() -> None:
    """The first two bash blocks are one command each; CI runs the second's test command, and parts of it on other Pythons."""
    demo, tests = (block.text.strip() for block in blocks(README, "bash")[:2])
    assert demo.endswith("taskflow demo")
    assert "\n" not in demo
    assert "\n" not in tests
    command = tests.rpartition(".venv/bin/python ")[2]
    assert command == "-m pytest -n auto"
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(rf'^    local run=\("\$1/bin/python" {command} -o', ci, re.MULTILINE)
    assert re.search(r'^step twice "\$work/3.13"$', ci, re.MULTILINE)


def test_nothing_advises_installing_an_unpublished_package() -> None:
    """Until 0.1.0 is published, the package comes from a clone. Pages and messages advise nothing else."""
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "taskflow").rglob("*.py")}
    pages = {name_of(page): page.read_text() for page in PAGES}
    advising = [name for name, text in (pages | sources).items() if re.search(r"pip install [^`\n]*taskflow-jobs", text)]
    assert advising == []
