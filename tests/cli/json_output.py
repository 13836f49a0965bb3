"""Checks the output of `--json` against docs/reference/cli-output.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

SCHEMA: Final[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "docs" / "reference" / "cli-output.json").read_text())

OF_SCHEDULES: Final = frozenset({"trigger", "pause", "resume", "remove", "backfill"})


def definition_of(argv: Sequence[str]) -> str:
    """Return the definition for this command line."""
    command, *rest = [word for word in argv if word != "--json"]
    if command in ("retry", "run-now", "cancel", "purge"):
        return "action"
    if command in ("pause", "resume"):
        return "pause"
    if command == "doctor" and "--rebuild" in rest:
        return "doctor_rebuild"
    if command == "status":
        return "status_watch" if "--watch" in rest else "status"
    if command == "jobs" and rest and not rest[0].startswith("-"):
        return "jobs_by_id"
    if command == "limits" and rest[:1] == ["set"]:
        return "limits_set"
    if command == "schedules" and rest and rest[0] in OF_SCHEDULES:
        return "schedules_act"
    return "schedules_next" if command == "schedules" and rest[:1] == ["next"] else command


def check(argv: Sequence[str], document: Any) -> None:
    """Raise an error if the document is not as documented. Without jsonschema, nothing is checked here, and test_json_output.py fails."""
    if find_spec("jsonschema") is not None:
        _validator(definition_of(argv)).validate(document)


@cache
def _validator(definition: str) -> Any:
    from jsonschema import Draft202012Validator

    assert definition in SCHEMA["$defs"], definition
    return Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{definition}"}, format_checker=Draft202012Validator.FORMAT_CHECKER)
