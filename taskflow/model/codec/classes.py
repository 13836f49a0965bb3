"""Recognizes classes with fields, and describes each with a `ClassFields`.

They may be dataclasses, TypedDicts, NamedTuples, msgspec Structs, attrs classes or pydantic v2 models. The last two are recognized by
their attributes, so neither attrs nor pydantic is imported here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, Required, get_origin

import msgspec
from typing_extensions import ReadOnly, is_typeddict

from taskflow.model.codec import wire as codes
from taskflow.model.codec.containers import read_map
from taskflow.model.codec.hints import hints_of_class
from taskflow.model.codec.records import ClassField, ClassFields
from taskflow.model.codec.shape import Misfit, Shape, Unresolved, Unsupported, raised, type_name
from taskflow.model.codec.untyped import ANY, read_any, write_any
from taskflow.model.codec.wire import marker, marker_of
from taskflow.model.errors import UnknownArgument


def is_model(kind: type) -> bool:
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_fields")


def record_of_model(kind: Any, _arguments: tuple[Any, ...]) -> ClassFields:
    """Return the fields of a model (pydantic has already replaced its type variables). Raises Unresolved if it uses an undefined class."""
    if not kind.__pydantic_complete__ and not kind.model_rebuild(raise_errors=False):
        raise Unresolved(kind.__qualname__, kind.__qualname__)
    fields = kind.__pydantic_fields__

    def parts(value: Any) -> Mapping[str, Any] | None:
        if type(value) is not kind:
            return None
        given = value.__pydantic_fields_set__
        own = {
            name: part for name, part in value.__dict__.items() if name in fields and (name in given or not _is_default(fields[name], part))
        }
        return {**own, **(value.__pydantic_extra__ or {})}

    def make(values: dict[str, Any]) -> Any:
        given = values.get("root", _UNDEFINED) if kind.__pydantic_root_model__ else values
        return kind() if given is _UNDEFINED else kind.__pydantic_validator__.validate_python(given, by_name=True, by_alias=False)

    declared = tuple(ClassField(name, field.annotation, field.is_required(), tuple(field.metadata)) for name, field in fields.items())
    return ClassFields(
        kind,
        declared,
        make=make,
        parts=parts,
        runs_code=True,
        forms=frozenset((dict, codes.MODEL)),
        around=_with_state,
        foreign=shape_of_foreign,
        undeclared=ANY if kind.model_config.get("extra") == "allow" else None,
    )


def _is_default(field: Any, value: Any) -> bool:
    """Return True if the value is the field's default. A value from a default factory never is, because the next one may differ."""
    try:
        return type(field.default) is type(value) and bool(field.default == value)
    except Exception:
        return False


def _with_state(of_fields: Shape) -> Shape:
    """Return a shape for models that also stores which fields were set explicitly, and the private attributes.

    If nothing else needs storing, a model is a map of those fields. Otherwise, it is an array of the marker
    MODEL, that map, a map of other fields that differ from their defaults, and a map of the private attributes.
    """

    def write(value: Any, levels: int) -> Any:
        wire = of_fields.write(value, levels)
        private = _private_wires(value, levels - 1)
        if not private and wire.keys() <= value.__pydantic_fields_set__:
            return wire
        given = {name: part for name, part in wire.items() if name in value.__pydantic_fields_set__}
        return [marker(codes.MODEL), given, {name: part for name, part in wire.items() if name not in given}, private]

    def read(wire: Any, levels: int) -> Any:
        if type(wire) is not list or marker_of(wire) != codes.MODEL:
            return of_fields.read(wire, levels)
        if len(wire) != 4 or any(type(part) is not dict for part in wire[1:]):
            raise Misfit(f"expected {of_fields.label}, got something else after its marker")
        _, given, filled, private = wire
        value = of_fields.read({**given, **filled}, levels)
        value.__pydantic_fields_set__.difference_update(filled)
        _set_private(value, read_map(private, read_any, levels - 1))
        return value

    return msgspec.structs.replace(of_fields, write=write, read=read)


def _private_wires(value: Any, levels: int) -> dict[str, Any]:
    """Return the wire values of the private attributes that differ from their defaults.

    An attribute that cannot be sent, such as a lock or a client, is left out if its class does
    not define `__eq__`. The model's class has to recreate it. For any other, Misfit is raised."""
    wires: dict[str, Any] = {}
    for name, part in (value.__pydantic_private__ or {}).items():
        if _is_default(type(value).__private_attributes__[name], part):
            continue
        try:
            wires[name] = write_any(part, levels)
        except Misfit as misfit:
            if "__eq__" in {name for kind in type(part).__mro__[:-1] for name in vars(kind)}:
                raise Misfit("is a private attribute of a model and cannot be sent: make it a field").within(f".{name}") from misfit
    return wires


def _set_private(value: Any, private: Mapping[str, Any]) -> None:
    for name, part in private.items():
        if name not in type(value).__private_attributes__:
            raise Misfit(f"has the private attribute {name!r}, which {type_name(type(value))} does not know", UnknownArgument)
        setattr(value, name, part)


_UNDEFINED = object()


def shape_of_foreign(annotation: Any) -> Shape:
    """Return the shape of a type that only pydantic knows (a URL, a path). Its values are sent in the form that pydantic uses in JSON.

    A value that is not equal after a round trip, such as a masked secret, is rejected.
    """
    try:
        adapter = sys.modules["pydantic"].TypeAdapter(annotation)
    except Exception as error:
        raise Unsupported(f"{annotation!r} is supported neither by taskflow nor by pydantic: {type(error).__name__}") from error
    label = annotation.__name__ if isinstance(annotation, type) else str(annotation)

    def write(value: Any, levels: int) -> Any:
        try:
            wire = write_any(adapter.dump_python(value, mode="json"), levels)
            same = adapter.validate_python(read_any(wire, levels)) == value
        except Misfit:
            raise
        except Exception as error:
            raise Misfit(f"cannot be sent as {label}: {raised(error)}") from error
        if not same:
            raise Misfit(f"cannot be sent as {label}: a {type_name(type(value))} comes back different from JSON")
        return wire

    def read(wire: Any, levels: int) -> Any:
        value = read_any(wire, levels)
        try:
            return adapter.validate_python(value)
        except Exception as error:
            raise Misfit(f"expected {label}: {raised(error)}") from error

    forms = frozenset((bool, int, float, str, list, dict))
    return Shape(label, write, read, read, types=frozenset((annotation,)) if isinstance(annotation, type) else frozenset(), forms=forms)


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
