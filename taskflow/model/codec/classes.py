"""Recognizes classes with fields, and describes each with a `ClassFields`.

They may be dataclasses, TypedDicts, NamedTuples, msgspec Structs, attrs classes or pydantic models. The last two are recognized by
their attributes, so neither attrs nor pydantic is imported here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, Required, get_origin

import msgspec
from typing_extensions import ReadOnly, is_typeddict

from taskflow.model.codec.hints import hints_of_class
from taskflow.model.codec.models import is_model, record_of_model
from taskflow.model.codec.records import ClassField, ClassFields
from taskflow.model.codec.shape import Unsupported


def record_for(kind: type, arguments: tuple[Any, ...]) -> ClassFields | None:
    """Return the fields of `kind[arguments]`, or None if the class is not of a known kind.

    Raises Unsupported if instances cannot be rebuilt from their fields, and Unresolved if the annotations cannot be resolved yet.
    """
    for is_one, build in _KINDS:
        if is_one(kind):
            return build(kind, arguments)
    return None


def _of_typed_dict(kind: Any, arguments: tuple[Any, ...]) -> ClassFields:
    hints = hints_of_class(kind, arguments)
    fields = tuple(ClassField(name, hint, _is_required(kind, name, hint)) for name, hint in hints.items())
    return ClassFields(dict, fields, make=dict, parts=lambda value: value if isinstance(value, dict) else None, has_tag=False)


def _is_required(kind: Any, name: str, hint: Any) -> bool:
    """Return True if a field is required. Its annotation takes precedence, because the class cannot read a postponed annotation."""
    while (origin := get_origin(hint)) is not None:
        if origin in (Required, NotRequired):
            return origin is Required
        if origin is not ReadOnly:
            break
        [hint] = hint.__args__
    return name in kind.__required_keys__


def _of_named_tuple(kind: Any, arguments: tuple[Any, ...]) -> ClassFields:
    hints = hints_of_class(kind, arguments)
    fields = tuple(ClassField(name, hints.get(name, Any), name not in kind._field_defaults) for name in kind._fields)
    return ClassFields(kind, fields, make=lambda values: kind(**values), runs_code=kind.__bases__ != (tuple,))


def _of_struct(kind: Any, arguments: tuple[Any, ...]) -> ClassFields:
    hints = hints_of_class(kind, arguments)
    fields = tuple(ClassField(field.name, hints[field.name], field.required) for field in msgspec.structs.fields(kind))
    return ClassFields(kind, fields, make=lambda values: kind(**values), runs_code=hasattr(kind, "__post_init__"))


def _of_dataclass(kind: Any, arguments: tuple[Any, ...]) -> ClassFields:
    _refuse_init_vars(kind)
    hints = hints_of_class(kind, arguments)
    declared = dataclasses.fields(kind)
    fields = tuple(ClassField(field.name, hints[field.name], _dataclass_requires(field)) for field in declared)
    late = [field.name for field in declared if not field.init]
    runs_code = any(hasattr(kind, name) for name in ("__post_init__", "__pydantic_validator__")) or _has_own_constructor(kind)
    return ClassFields(kind, fields, make=_maker(kind, {}, late), runs_code=runs_code)


def _has_own_constructor(kind: Any) -> bool:
    """Return True if the class's author wrote `__init__` or `__new__`.

    dataclasses and attrs compile a generated `__init__` from text, so the file name in its code is a placeholder that starts with "<".
    """
    code = getattr(kind.__init__, "__code__", None)
    return code is None or not code.co_filename.startswith("<") or kind.__new__ is not object.__new__


def _refuse_init_vars(kind: Any) -> None:
    for name, field in kind.__dataclass_fields__.items():
        if repr(field._field_type) == "_FIELD_INITVAR":
            raise Unsupported(f"{kind.__qualname__}.{name} is an InitVar, which an instance does not keep; make it a field, or remove it")


def _dataclass_requires(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _of_attrs(kind: Any, arguments: tuple[Any, ...]) -> ClassFields:
    hints = hints_of_class(kind, arguments)
    attributes, nothing = kind.__attrs_attrs__, sys.modules["attr"].NOTHING
    fields = tuple(ClassField(each.name, hints.get(each.name, Any), each.init and each.default is nothing) for each in attributes)
    aliases = {each.name: each.alias for each in attributes if each.init and each.alias != each.name}
    late = [each.name for each in attributes if not each.init]
    has_hooks = hasattr(kind, "__attrs_pre_init__") or hasattr(kind, "__attrs_post_init__")
    hooks = has_hooks or any(each.validator or each.converter for each in attributes)
    return ClassFields(kind, fields, make=_maker(kind, aliases, late), runs_code=hooks or _has_own_constructor(kind))


def _maker(kind: Any, aliases: dict[str, str], late: Sequence[str]) -> Callable[[dict[str, Any]], Any]:
    """Return a function that calls the constructor with the fields that it accepts, and then sets the others on the instance."""
    if not aliases and not late:
        return lambda values: kind(**values)

    def make(values: dict[str, Any]) -> Any:
        after = [(name, values.pop(name)) for name in late if name in values]
        instance = kind(**{aliases.get(name, name): value for name, value in values.items()})
        for name, value in after:
            object.__setattr__(instance, name, value)
        return instance

    return make


_KINDS: tuple[tuple[Callable[[type], bool], Callable[[Any, tuple[Any, ...]], ClassFields]], ...] = (
    (is_typeddict, _of_typed_dict),
    (is_model, record_of_model),
    (lambda kind: issubclass(kind, msgspec.Struct), _of_struct),
    (lambda kind: "__attrs_attrs__" in vars(kind), _of_attrs),
    (dataclasses.is_dataclass, _of_dataclass),
    (lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"), _of_named_tuple),
)
