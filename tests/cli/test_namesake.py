"""OpenStack's TaskFlow, which has the same import name, is installed too: doctor, worker and the pytest plugin say what to remove."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import taskflow
from tests.cli.inprocess import Cli
from tests.cli.processes import Shell

pytestmark = pytest.mark.unmeasured

UNINSTALL = "(pip uninstall taskflow), then install taskflow-jobs again with --force-reinstall --no-deps"


def install_theirs(site: Path) -> None:
    metadata = site / "taskflow-5.9.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: taskflow\nVersion: 5.9.1\n")
    (site / "taskflow" / "engines").mkdir(parents=True)
    (site / "taskflow" / "engines" / "__init__.py").touch()


@pytest.fixture(params=["ours last", "theirs last"])
def mixed(request: pytest.FixtureRequest, shell: Shell) -> Shell:
    """Install both in one folder; the later one has overwritten `taskflow/__init__.py`."""
    site = shell.folder / "site"
    shutil.copytree(Path(taskflow.__file__).parent, site / "taskflow", ignore=shutil.ignore_patterns("__pycache__"))
    install_theirs(site)
    if request.param == "theirs last":
        (site / "taskflow" / "__init__.py").write_text("")
    shell.environment["PYTHONPATH"] = str(site)
    shell.write("tasks.py", "from taskflow import job\n@job\ndef work(): pass\n")
    shell.write("test_tasks.py", "def test_nothing(): pass\n")
    return shell


def test_doctor_names_it_wherever_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "installation" not in cli("doctor", code=3).out
    install_theirs(cli.folder / "elsewhere")
    monkeypatch.syspath_prepend(cli.folder / "elsewhere")
    said = cli("doctor", code=3)  # there is no store yet
    assert "problem  installation: OpenStack's distribution taskflow 5.9.1 is installed beside taskflow-jobs" in said.out
    assert UNINSTALL in said.out


def test_a_worker_says_which_one_to_remove(mixed: Shell) -> None:
    worker = mixed.taskflow("worker", "tasks", "--drain")
    worker.end()
    assert UNINSTALL in worker.said


def test_pytest_says_which_one_to_remove(mixed: Shell) -> None:
    assert UNINSTALL in mixed.run("-m", "pytest", "-p", "no:cacheprovider", "test_tasks.py")
