"""The pages can be built, and their links to other sites work, by Sphinx's linkcheck. Needs the extra `docs` and the network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("sphinx")


def test_the_documentation_is_built(tmp_path: Path) -> None:
    """.ci/run reads all pages and resolves their references, but writes no HTML."""
    assert (
        subprocess.run([sys.executable, "-m", "sphinx", "-q", "-n", "-W", str(ROOT / "docs"), str(tmp_path)], check=False).returncode == 0
    )


def test_the_links_of_the_documentation_work(tmp_path: Path) -> None:
    _check(tmp_path, str(ROOT / "docs"))


def test_the_links_of_the_other_pages_work(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob(".github/*.md")):
        shutil.copy(page, pages)
    _check(tmp_path, "-C", "-D", "extensions=myst_parser", "-D", "root_doc=README", "-D", "suppress_warnings=*", str(pages))


def _check(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "linkcheck", *arguments, str(folder / "found")]
    subprocess.run(command, check=False, timeout=300)  # it exits with 1 if a link is broken
    lines = (folder / "found/output.json").read_text().splitlines()
    found = [link for link in map(json.loads, lines) if link["uri"].startswith("http")]
    assert found
    broken = [(link["filename"], link["uri"], link["info"]) for link in found if link["status"] in ("broken", "timeout")]
    if len(broken) == len(found):
        pytest.skip(f"no site is in reach from here: {broken[0]}")
    assert broken == []
