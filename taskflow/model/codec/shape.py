"""The compiled form of an annotation, which writes values to wire values and reads them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from taskflow.model.codec.misfit import Misfit

Write: TypeAlias = Callable[[Any, int], Any]
"""Takes a value and the levels left; returns a wire value. Raises Misfit if the value does not fit the annotation."""

Read: TypeAlias = Callable[[Any, int], Any]
"""Takes a wire value and the levels left; returns a value. Raises Misfit, and nothing else, if the wire value does not fit."""

Form: TypeAlias = object
"""Distinguishes wire values: a type (`str`, `dict`), the code of an extension or marker, or ("tag", name)."""


class Shape(msgspec.Struct, frozen=True):
    """A compiled annotation; immutable and shared by all codecs that use it."""

    label: str
    write: Write
    read: Read
    read_json: Read
    types: frozenset[type]
    """The exact types of the values that it can write."""
    forms: frozenset[Form]
    """The forms of its wire values."""
    tag: str = ""
    """The name with which a union can mark its values; "" if their type is not enough to recognize them."""
    wide: bool = False
    """True if it accepts every self-describing value, as `Any` does. In a union it replaces all members that are not classes."""
    fits_json: Callable[[Any], bool] = lambda wire: False
    """Returns True if a JSON array or object looks like this shape, without looking deeper. A union chooses the first match."""


class Unresolved(Exception):
    """An annotation contains an undefined name. `where` names the parameter or field."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{where}: the name {name!r} is not defined")
        self.name = name
        self.where = where


class Unsupported(Exception):
    """The annotation cannot be compiled. The message says why and what to do; `within` adds the enclosing fields."""

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
