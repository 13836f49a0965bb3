"""What the README shows is what is there."""

from __future__ import annotations

import re
from pathlib import Path

from taskflow.app.settings import DEFAULT_BROKER, TEXTUAL, Settings
from taskflow.cli.exits import MEANINGS
from tests.readme.diagram import diagram

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_state_diagram_is_the_table_of_moves() -> None:
    assert [block.strip() for block in blocks("mermaid")] == [diagram()]


def test_the_exit_codes_are_those_of_the_code() -> None:
    shown = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", README, re.MULTILINE))
    assert shown == {str(int(code)): meaning for code, meaning in MEANINGS.items()}


def test_the_settings_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (?:`(TASKFLOW_\w+)`)? ?\| `?([^|`]+)`? \|", README, re.MULTILINE)
    assert {name for names, *_ in rows for name in re.findall(r"\w+", names)} == set(Settings.__struct_fields__)
    shown = {variable: default.replace(",", "") for _, variable, default in rows if variable}
    plain = Settings(broker=DEFAULT_BROKER)
    assert shown == {f"TASKFLOW_{name.upper()}": str(getattr(plain, name)) for name in TEXTUAL}


def test_the_second_command_is_what_ci_runs() -> None:
    """The first two bash blocks are one command each; CI runs the second's test command, measured, and parts of it on other Pythons."""
    demo, tests = (block.strip() for block in blocks("bash")[:2])
    assert demo.endswith("taskflow demo")
    assert "\n" not in demo
    assert "\n" not in tests
    command = tests.rpartition(".venv/bin/python ")[2]
    assert command == "-m pytest -n auto"
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(rf'^step "\$bin/python" -m coverage run {command} -p no:cacheprovider$', ci, re.MULTILINE)
    assert re.search(rf'/bin/python" {command} ', ci)


def test_no_installation_of_what_is_not_published_is_advised() -> None:
    """Until 0.1.0 is published, the package comes from a clone. Messages advise nothing else than the README does."""
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "taskflow").rglob("*.py")}
    advising = [name for name, text in {"README.md": README, **sources}.items() if re.search(r"pip install [^`\n]*taskflow-jobs", text)]
    assert advising == []
