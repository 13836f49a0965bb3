"""What a host of repositories reads: the workflow, the issue templates, the security policy, the metadata of the package."""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import README, ROOT

GITHUB = ROOT / ".github"


def test_the_workflow_runs_the_checks_of_the_repository_on_each_push() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads the key `on` as true
    [job] = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_workflow_has_each_python_that_the_checks_use() -> None:
    [job] = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text())["jobs"].values()
    [versions] = [step["with"]["python-version"].split() for step in job["steps"] if "python-version" in step.get("with", {})]
    used = set(re.findall(r"\b3\.\d+\b", re.sub(r"#.*", "", (ROOT / ".ci/run").read_text())))
    assert set(versions) == used
    assert versions[-1] == "3.13"  # the last one is `python3`


def test_the_metadata_of_the_package_names_files_that_exist() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [name for name in (project["readme"], *project["license-files"]) if not (ROOT / name).is_file()] == []
    least = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {least}" in project["classifiers"]
    assert f"Python {least} or newer" in README.read_text()


def test_readme_and_contributing_give_the_tests_the_same_time() -> None:
    [readme] = re.findall(r"take about (\d+) minutes", README.read_text())
    [contributing] = re.findall(r"^\| all \| [^|]+ \| (\d+) min \|", Path(GITHUB / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert readme == contributing


def test_the_changelog_has_each_heading_and_each_change_once() -> None:
    """A merge of two changelogs may leave both."""
    released = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    for version in released:
        lines = [line for line in version.splitlines() if line.startswith(("### ", "- "))]
        assert [line for line, times in Counter(lines).items() if times > 1] == []


def test_a_release_is_built_by_the_script_that_the_nightly_test_runs() -> None:
    steps = yaml.safe_load((GITHUB / "workflows/release.yml").read_text())["jobs"]["package"]["steps"]
    assert {"run": ".ci/package packages"} in steps
    assert os.access(ROOT / ".ci/package", os.X_OK)
