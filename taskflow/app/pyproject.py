"""Finds the table `[tool.taskflow]` of the project's pyproject.toml. The supervisor reads it too, so this module imports little."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from taskflow.model.errors import ConfigurationError


def project_table(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the path of the nearest pyproject.toml, in the folder or above it, and its `[tool.taskflow]` table, which may be empty. Return
    None if there is no such file. Raises ConfigurationError if the file cannot be read, or if `[tool.taskflow]` is not a table."""
    for candidate in (folder, *folder.parents):
        file = candidate / "pyproject.toml"
        if file.is_file():
            import tomllib  # imported here, because most folders have no pyproject.toml

            try:
                tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
            except (OSError, ValueError) as error:  # a ValueError also for an integer of thousands of digits
                raise ConfigurationError(f"{file} cannot be read: {error}") from error
            return file, table_in(tool if isinstance(tool, dict) else {"taskflow": tool}, "taskflow", "tool.", file)
    return None


def table_in(table: Mapping[str, Any], name: str, path: str, file: Path) -> Mapping[str, Any]:
    """Return the table of this name in another table, or an empty one. Raises ConfigurationError if the value isn't a table."""
    found = table.get(name, {})
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file}: [{path}{name}] must be a table, got {found!r}")
    return found


def check_names(table: Mapping[str, Any], path: str, file: Path, known: Collection[str]) -> None:
    """Raise ConfigurationError if the table has an unknown setting."""
    for name in table:
        if name not in known:
            raise ConfigurationError(f"[{path}] in {file} has an unknown setting {name!r}; settings are {', '.join(known)}")
