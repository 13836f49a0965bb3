"""Shapes, which are compiled annotations, and the errors for values that do not fit one. Users get public errors instead of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from taskflow.model.errors import CodecError, DecodeError, EncodeError, TooLarge

_E = TypeVar("_E", bound=CodecError)
_MAX_KEY = 60
_KNOWN_MODULES = ("builtins", "datetime", "uuid", "decimal", "zoneinfo", "pathlib", "pathlib._local")


class ShapeError(Exception):
    """Raised when a value does not fit its shape. Each enclosing container adds a step to the error's path with `within`. The codec
    converts the error to class `error`, or to EncodeError or DecodeError."""

    def __init__(self, message: str, error: type[CodecError] | None = None, *, needs_annotation: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self._error = error
        self._needs_annotation = needs_annotation
        self._steps: list[str] = []

    def within(self, step: str) -> ShapeError:
        """Add a position inside the enclosing container to the path. Returns the error itself, for use in `raise`."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        """The path from the outermost value inwards, written like code: ``data.lines[2]``."""
        return _joined(self._steps)

    def as_encode_error(self, where: str = "", annotated: str = "") -> EncodeError:
        """Return the error as an EncodeError, with `where` after the message. `annotated` names what the user may need to annotate."""
        advice = f": annotate {annotated} with its class, register it (register_type), or send plain data" if self._needs_annotation else ""
        return self._as(EncodeError, advice + where, self.path)

    def as_decode_error(self, where: str = "") -> DecodeError:
        """Return the error as a DecodeError, with `where` after the message. Its stored and logged path shows only types of dict keys."""
        return self._as(DecodeError, where, _joined([getattr(step, "unnamed", step) for step in self._steps]))

    def _as(self, usual: type[_E], where: str, path: str) -> _E:
        error = self._error if self._error is not None and issubclass(self._error, usual) else usual
        return error(f"{self.message}{where}", path=path)


def _joined(steps: list[str]) -> str:
    return "".join(reversed(steps)).removeprefix(".")


def too_deep() -> ShapeError:
    return ShapeError("is nested deeper than the limit allows; send a flatter value", TooLarge)


def unexpected(expected: str, value: object) -> ShapeError:
    """Return a ShapeError for a value of the wrong type. Its message names only types, because values may be secret."""
    return ShapeError(f"expected {expected}, got {type_name(type(value))}")


def type_name(kind: type) -> str:
    """Return the name of a type as a user would write it, such as ``int`` or ``app.models.User``."""
    module = kind.__module__
    return kind.__qualname__ if module in _KNOWN_MODULES else f"{module}.{kind.__qualname__}"


class KeyStep(str):
    """The path step to the value under a key of a dict. A key is data and may be secret, so decode errors show its type only."""

    __slots__ = ("unnamed",)
    unnamed: str


def key_step(key: Any) -> KeyStep:
    """Return the path step that leads to the value under `key` in a mapping. A long key is shortened."""
    unnamed = f"[<{type(key).__name__}>]"
    if isinstance(key, str | bytes) and len(key) > _MAX_KEY:
        step = KeyStep(f"[{key[:_MAX_KEY]!r}...]")
    elif isinstance(key, str | bytes | bool | None) or (isinstance(key, int) and key.bit_length() < 64):
        step = KeyStep(f"[{key!r}]")
    else:
        step = KeyStep(unnamed)
    step.unnamed = unnamed
    return step


def name_step(name: str) -> str:
    """Return the path step to an argument, or to a field of a TypedDict."""
    return str(key_step(name))


def raised(error: BaseException) -> str:
    """Return a description of an exception for the end of a message, even if the exception cannot be converted to text."""
    try:
        if not _shows_values(error):
            return f"{type(error).__name__}: {error}"
        # pydantic's findings, without values and without paths inside a field, which may contain keys of a dict.
        problems = error.errors(include_url=False, include_context=False, include_input=False)  # type: ignore[attr-defined]
        text = "; ".join(": ".join((*map(str, each["loc"][:1]), each["msg"])) for each in problems[:10])
        return f"{type(error).__name__}: {text}"
    except Exception:
        return "an exception that cannot be shown"


def shown_cause(error: BaseException | None) -> BaseException | None:
    """Return the exception to use as the cause of an error whose traceback is stored, or None if its own text shows input values."""
    return None if _shows_values(error) else error


def _shows_values(error: object) -> bool:
    return type(error).__module__.startswith("pydantic_core")


def one_of(names: Sequence[str]) -> str:
    """Join up to ten of the names with commas, for the end of a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


Convert: TypeAlias = Callable[[Any, int], Any]
"""Converts a value to a wire value, or back. The int is the number of nesting levels left. Raises ShapeError if the value does not fit."""

Form: TypeAlias = object
"""A feature that distinguishes wire values: a type such as `str`, the code of an extension or marker, ("tag", name) or ("type", name)."""


class Shape(msgspec.Struct, frozen=True):
    """A compiled annotation, which writes and reads values. It is immutable, so several annotations can share it.

    `label`      its name in error messages
    `types`      the exact types of the values that it can write
    `forms`      the forms of its wire values
    `tag`        the name with which a union can mark the values; "" if their type does not identify them
    `wide`       True if it accepts every self-describing value, as `Any` does. In a union, it replaces members such as int or str
    `fits_json`  returns True if a JSON array or object fits, judged by its type, keys and length. A union chooses the first such member
    `keys`       the keys of a TypedDict, by which a union distinguishes its values from those of another
    `runs_code`  True if decoding runs code in users' classes. Set only on the shapes of a job's arguments and of its result
    """

    label: str
    write: Convert
    read: Convert
    read_json: Convert
    types: frozenset[type] = frozenset()
    forms: frozenset[Form] = frozenset()
    tag: str = ""
    wide: bool = False
    fits_json: Callable[[Any], bool] = lambda wire: False
    keys: DictKeys | None = None
    runs_code: bool = False


class Tag(msgspec.Struct, frozen=True):
    """A required key of a TypedDict whose annotation is a Literal."""

    values: tuple[Any, ...]
    shape: Shape


class DictKeys(msgspec.Struct, frozen=True):
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
