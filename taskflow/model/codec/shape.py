"""Shapes: compiled annotations, which convert values to wire values and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

Write: TypeAlias = Callable[[Any, int], Any]
"""Converts a value to a wire value. The int is how many levels may still be nested. Raises Misfit for a value that does not fit."""

Read: TypeAlias = Callable[[Any, int], Any]
"""Converts a wire value to a value. The int is how many levels may still be nested. Raises Misfit if the wire value does not fit."""

Form: TypeAlias = object
"""A feature that distinguishes wire values: a type such as `str`, the code of an extension or marker, ("tag", name) or ("type", name)."""


class Shape(msgspec.Struct, frozen=True):
    """A compiled annotation, which writes and reads values. It is immutable, so several annotations can share it."""

    label: str
    write: Write
    read: Read
    read_json: Read
    types: frozenset[type]
    """The exact types of the values that the shape can write."""
    forms: frozenset[Form]
    """The forms of its wire values."""
    tag: str = ""
    """The name with which a union can mark the values; "" if it cannot recognize them by their type."""
    wide: bool = False
    """True if it accepts every self-describing value, as `Any` does. In a union, it replaces members such as int or str."""
    fits_json: Callable[[Any], bool] = lambda wire: False
    """Returns True if a JSON array or object fits, judged by its type, keys and
    length. A union chooses the first member whose function returns True."""
    keys: DictKeys | None = None
    """The keys of a TypedDict, by which a union tells its values from those of another."""


class Tag(msgspec.Struct, frozen=True):
    """A required key of a TypedDict whose annotation is a Literal."""

    values: tuple[Any, ...]
    shape: Shape


class DictKeys(msgspec.Struct, frozen=True):
    """The keys of a TypedDict."""

    known: frozenset[str]
    required: frozenset[str]
    tags: Mapping[str, Tag]


class Unresolved(Exception):
    """Raised if an annotation contains an undefined name. `where` names the parameter or field."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{where}: the name {name!r} is not defined")
        self.name = name
        self.where = where


class Unsupported(Exception):
    """Raised if an annotation cannot be compiled. The message says why and what to do; `within` adds the path of enclosing fields."""

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
