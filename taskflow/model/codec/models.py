"""pydantic models (v2): their fields as annotated, so that all stays exact; what only pydantic knows goes through pydantic.

pydantic is never imported here: a model's class brings it along.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from taskflow.model.codec.misfit import Misfit, type_name
from taskflow.model.codec.records import Field, Record
from taskflow.model.codec.shape import Shape, Unresolved, Unsupported
from taskflow.model.codec.untyped import read_any, write_any


def is_model(kind: type) -> bool:
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_fields")


def record_of_model(kind: Any, _arguments: tuple[Any, ...]) -> Record:
    """The record of a model; pydantic has replaced its type variables itself. Unresolved while a class that it names is missing."""
    if not kind.__pydantic_complete__ and not kind.model_rebuild(raise_errors=False):
        raise Unresolved(kind.__qualname__, kind.__qualname__)
    fields = kind.__pydantic_fields__

    def parts(value: Any) -> Mapping[str, Any] | None:
        if type(value) is not kind:
            return None
        own = {name: field for name, field in value.__dict__.items() if name in fields}
        return {**own, **(value.__pydantic_extra__ or {})}

    def make(values: dict[str, Any]) -> Any:
        given = values["root"] if kind.__pydantic_root_model__ else values
        return kind.__pydantic_validator__.validate_python(given, by_name=True, by_alias=False)

    declared = tuple(Field(name, field.annotation, field.is_required()) for name, field in fields.items())
    return Record(kind, declared, make=make, parts=parts, may_refuse=True, foreign=shape_of_foreign)


def shape_of_foreign(annotation: Any) -> Shape:
    """A type that pydantic alone knows (a URL, a path): as JSON has it, if it comes back equal. A masked secret does not: refused."""
    try:
        adapter = sys.modules["pydantic"].TypeAdapter(annotation)
    except Exception as error:
        raise Unsupported(f"{annotation!r} is known neither to taskflow nor to pydantic: {type(error).__name__}") from error
    label = annotation.__name__ if isinstance(annotation, type) else str(annotation)

    def write(value: Any, levels: int) -> Any:
        try:
            wire = write_any(adapter.dump_python(value, mode="json"), levels)
            same = adapter.validate_python(read_any(wire, levels)) == value
        except Misfit:
            raise
        except Exception as error:
            raise Misfit(f"cannot be sent as {label}: {type(error).__name__}: {error}") from error
        if not same:
            raise Misfit(f"cannot be sent as {label}: a {type_name(type(value))} comes back different from JSON")
        return wire

    def read(wire: Any, levels: int) -> Any:
        value = read_any(wire, levels)
        try:
            return adapter.validate_python(value)
        except Exception as error:
            raise Misfit(f"expected {label}: {type(error).__name__}: {error}") from error

    forms = frozenset((bool, int, float, str, list, dict))
    return Shape(label, write, read, read, types=frozenset((annotation,)) if isinstance(annotation, type) else frozenset(), forms=forms)
