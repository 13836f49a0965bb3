"""What is known of one annotation: how its values are written to wire values and read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from taskflow.model.codec.misfit import Misfit

Write: TypeAlias = Callable[[Any, int], Any]
"""(value, levels left) to wire value; Misfit if the value is not of the annotation."""

Read: TypeAlias = Callable[[Any, int], Any]
"""(wire value, levels left) to value; Misfit if the wire value is not of the annotation. Whatever the wire, only Misfit."""

Form: TypeAlias = object
"""What tells wire values apart: a type (`str`, `dict`), an extension's or marker's code, or ("tag", name)."""


class Shape(msgspec.Struct, frozen=True):
    """One annotation, compiled; immutable and shared by every codec part that has it."""

    label: str
    write: Write
    read: Read
    read_json: Read
    types: frozenset[type]
    """The exact types of the values that it writes."""
    forms: frozenset[Form]
    """The forms of what it writes."""
    tag: str = ""
    """By what name a union can mark its values; "" if it cannot (they are not told apart by their type)."""
    wide: bool = False
    """Takes every self-describing value, as `Any` does: in a union it covers all members that are not classes."""
    fits_json: Callable[[Any], bool] = lambda wire: False
    """Whether a JSON array or object looks like this one, without going deeper; a union commits to the first that does."""


class Unresolved(Exception):
    """An annotation names what does not exist yet; `where` says in which parameter or field."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{where}: the name {name!r} cannot be found")
        self.name = name
        self.where = where


class Unsupported(Exception):
    """An annotation that has no shape; the message says which and what to do, `within` adds the fields around it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self._steps: list[str] = []

    def within(self, step: str) -> Unsupported:
        self._steps.append(step)
        return self

    def __str__(self) -> str:
        path = "".join(reversed(self._steps))
        return f"{path}: {self.message}" if path else self.message


__all__ = ["Form", "Misfit", "Read", "Shape", "Unresolved", "Unsupported", "Write"]
