"""Misfits: internal errors for values and wire values that do not fit a shape. Users of the codec get public errors instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from taskflow.model.errors import CodecError, DecodeError, EncodeError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

_E = TypeVar("_E", bound=CodecError)
_LONGEST = 60
_KNOWN_MODULES = ("builtins", "datetime", "uuid", "decimal", "zoneinfo", "pathlib", "pathlib._local")


class Misfit(Exception):
    """Raised when a value does not fit its shape. Each enclosing container adds a step to its path with `within`.

    It never leaves this package: the codec converts it to an error of class `error`, or to EncodeError or DecodeError.
    """

    def __init__(self, message: str, error: type[CodecError] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self._error = error
        self._steps: list[str] = []

    def within(self, step: str) -> Misfit:
        """Add `step`, a position inside the enclosing container, to the path. Returns the misfit itself, for use in `raise`."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        """The path from the outermost value inwards, written like code: ``data.lines[2]``."""
        return "".join(reversed(self._steps)).removeprefix(".")

    def as_encode_error(self, where: str = "", annotated: str = "") -> EncodeError:
        """Return the misfit as an EncodeError. `annotated` names what the user should annotate if the value needs an annotation."""
        return self._as(EncodeError, f"{self._advice(annotated)}{where}")

    def as_decode_error(self, where: str = "") -> DecodeError:
        return self._as(DecodeError, where)

    def _advice(self, annotated: str) -> str:
        return ""

    def _as(self, usual: type[_E], where: str) -> _E:
        error = self._error if self._error is not None and issubclass(self._error, usual) else usual
        return error(f"{self.message}{where}", path=self.path)


class NeedsAnnotation(Misfit):
    """Raised for an instance of a class if no annotation names the class."""

    def _advice(self, annotated: str) -> str:
        return f": annotate {annotated} with its class, register it (register_type), or send plain data"


def too_deep() -> Misfit:
    return Misfit("is nested deeper than the limit allows; send a flatter value", TooLarge)


def unexpected(expected: str, value: object) -> Misfit:
    """Return a Misfit for a value of the wrong type. Its message names only types, because values may be secret."""
    return Misfit(f"expected {expected}, got {type_name(type(value))}")


def type_name(kind: type) -> str:
    """Return the name of a type as a user would write it, such as ``int`` or ``app.models.User``."""
    module = kind.__module__
    return kind.__qualname__ if module in _KNOWN_MODULES else f"{module}.{kind.__qualname__}"


def field_step(name: str) -> str:
    return f".{name}"


def key_step(key: Any) -> str:
    """Return the path step that leads to the value under `key` in a mapping. A long key is shortened."""
    if isinstance(key, str | bytes) and len(key) > _LONGEST:
        return f"[{key[:_LONGEST]!r}...]"
    if isinstance(key, str | bytes | bool | None) or (isinstance(key, int) and key.bit_length() < 64):
        return f"[{key!r}]"
    return f"[<{type(key).__name__}>]"


def raised(error: BaseException) -> str:
    """Return a description of an exception for the end of a message, even if the exception cannot be converted to text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return "an exception that cannot be shown"


def one_of(names: Sequence[str]) -> str:
    """Join up to ten of the names with commas, for the end of a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
