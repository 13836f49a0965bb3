"""Shapes for classes with named fields: dataclasses, TypedDicts, NamedTuples, msgspec Structs, attrs classes and pydantic v2 models.

Instances are maps keyed by field name. Decoding calls the class that the annotation names, so all checks in its constructor apply. attrs
and pydantic classes are recognized by their attributes, so neither is imported here.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NotRequired, Required, get_origin

import msgspec
from typing_extensions import ReadOnly, is_typeddict

from taskflow.model.codec import wire as codes
from taskflow.model.codec.containers import read_map
from taskflow.model.codec.hints import hints_of_class
from taskflow.model.codec.shape import (
    Convert,
    Form,
    Shape,
    ShapeError,
    Unresolved,
    Unsupported,
    name_step,
    one_of,
    raised,
    too_deep,
    type_name,
    unexpected,
)
from taskflow.model.codec.untyped import ANY, read_any, write_any
from taskflow.model.codec.wire import marker, marker_of, wire_type
from taskflow.model.errors import MissingArgument, UnknownArgument


class ClassField(msgspec.Struct, frozen=True):
    """A field of a class, with its uncompiled annotation.

    `required`  False if the class can fill in the value when it is missing on the wire
    `metadata`  the metadata of the annotation, if the class keeps it separately
    """

    name: str
    annotation: Any
    required: bool = True
    metadata: tuple[Any, ...] = ()


class ClassFields(msgspec.Struct, frozen=True):
    """Describes how to write and read instances of a class with fields.

    `kind`        the class of the instances; dict for a TypedDict
    `make`        makes an instance from its fields, given by name. It may raise any exception
    `parts`       maps an instance to its fields, and any other object to None. If this is not given, the fields are attributes
    `runs_code`   True if making an instance runs the author's code. Only decoding shows whether that code leaves a value unchanged
    `has_tag`     True if a union can mark values with the name of the class. False for a TypedDict, whose values are plain dicts
    `forms`       the forms of the wire values, including any that `around` adds
    `around`      takes the shape of the fields, and returns a shape that also includes whatever else an instance stores
    `foreign`     makes the shape of a field whose annotation only the library behind the class understands
    `undeclared`  the shape of fields that an instance has but the class does not declare; None if such fields are rejected
    """

    kind: type
    fields: tuple[ClassField, ...]
    make: Callable[[dict[str, Any]], Any]
    parts: Callable[[Any], Mapping[str, Any] | None] | None = None
    runs_code: bool = False
    has_tag: bool = True
    forms: frozenset[Form] = frozenset((dict,))
    around: Callable[[Shape], Shape] | None = None
    foreign: Callable[[Any], Shape] | None = None
    undeclared: Shape | None = None


def record_of(record: ClassFields, promised: Shape, shapes: Mapping[str, Shape]) -> Shape:
    """Complete `promised`, the placeholder for the shape of a class, given the shapes of its fields, keyed by name."""
    label, known = promised.label, frozenset(shapes)
    required = frozenset(field.name for field in record.fields if field.required)
    shape = msgspec.structs.replace(
        promised,
        write=_parts_writer(record.parts, label, _converter(record, label, required, shapes, lambda shape: shape.write))
        if record.parts
        else _attribute_writer(record.kind, label, [(name, shape.write) for name, shape in shapes.items()]),
        read=_reader(record, label, _converter(record, label, required, shapes, lambda shape: shape.read)),
        read_json=_reader(record, label, _converter(record, label, required, shapes, lambda shape: shape.read_json)),
        fits_json=lambda wire: type(wire) is dict and required <= wire.keys() and (record.undeclared is not None or wire.keys() <= known),
    )
    return record.around(shape) if record.around else shape


def _converter(
    record: ClassFields, label: str, required: frozenset[str], shapes: Mapping[str, Shape], convert_of: Callable[[Shape], Convert]
) -> Convert:
    """Return a function that checks the names of fields and converts their values, in either direction."""
    declared = {name: convert_of(shape) for name, shape in shapes.items()}

    def convert(parts: Mapping[Any, Any], levels: int) -> dict[str, Any]:
        if levels < 1:
            raise too_deep()
        converts = declared
        if undeclared := parts.keys() - declared.keys():
            if refused := [name for name in undeclared if record.undeclared is None or type(name) is not str or _SURROGATE.search(name)]:
                raise ShapeError(f"has {_names(refused)}, which {label} does not define", UnknownArgument)
            converts = declared | dict.fromkeys(undeclared, convert_of(record.undeclared or ANY))
        if not parts.keys() >= required:
            raise ShapeError(f"lacks {_names(required - parts.keys())}, which {label} requires", MissingArgument)
        converted: dict[str, Any] = {}
        name = ""
        try:
            for name, part in parts.items():
                converted[name] = converts[name](part, levels - 1)
        except ShapeError as error:
            error.within(f".{name}" if record.has_tag else name_step(name))
            raise
        return converted

    return convert


_SURROGATE: Final = re.compile("[\\ud800-\\udfff]")


def _names(names: Iterable[Any]) -> str:
    return one_of(sorted(repr(name)[:60] for name in names))


def _attribute_writer(kind: type, label: str, writes: list[tuple[str, Convert]]) -> Convert:
    def write(value: Any, levels: int) -> dict[str, Any]:
        if type(value) is not kind:
            raise unexpected(label, value)
        if levels < 1:
            raise too_deep()
        levels -= 1
        wires: dict[str, Any] = {}
        name = ""
        try:
            for name, write_part in writes:
                wires[name] = write_part(getattr(value, name), levels)
        except ShapeError as error:
            error.within(f".{name}")
            raise
        except AttributeError:
            raise ShapeError("has no value").within(f".{name}") from None
        return wires

    return write


def _parts_writer(parts_of: Callable[[Any], Mapping[str, Any] | None], label: str, convert: Convert) -> Convert:
    def write(value: Any, levels: int) -> Any:
        parts = parts_of(value)
        if parts is None:
            raise unexpected(label, value)
        return convert(parts, levels)

    return write


def _reader(record: ClassFields, label: str, convert: Convert) -> Convert:
    def read(wire: Any, levels: int) -> Any:
        if type(wire) is not dict:
            raise ShapeError(f"expected {label}, got {wire_type(wire)}")
        fields = convert(wire, levels)
        try:
            return record.make(fields)
        except Exception as error:
            raise ShapeError(f"{label} rejected its fields: {raised(error)}") from error

    return read


# --- pydantic models ----------------------------------------------------------------------------------------------


def _of_model(kind: Any, _arguments: tuple[Any, ...]) -> ClassFields:
    """Return the fields of a model, whose type variables pydantic has already replaced. Raises Unresolved for an undefined name."""
    if not kind.__pydantic_complete__ and not kind.model_rebuild(raise_errors=False):
        raise Unresolved(kind.__qualname__, kind.__qualname__)
    fields = kind.__pydantic_fields__

    def parts(value: Any) -> Mapping[str, Any] | None:
        if type(value) is not kind:
            return None
        given, own = value.__pydantic_fields_set__, {name: part for name, part in value.__dict__.items() if name in fields}
        own = {name: part for name, part in own.items() if name in given or not _is_default(fields[name], part)}
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
        foreign=_foreign,
        undeclared=ANY if kind.model_config.get("extra") == "allow" else None,
    )


def _is_default(field: Any, value: Any) -> bool:
    """Return True if the value is the field's default. A factory's value doesn't count, because the next value may differ."""
    try:
        return type(field.default) is type(value) and bool(field.default == value)
    except Exception:
        return False


def _with_state(of_fields: Shape) -> Shape:
    """Return a shape that also stores, if necessary, which of a model's fields were set explicitly, and its private attributes."""

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
            raise ShapeError(f"expected {of_fields.label}, got malformed data after its type marker")
        _, given, filled, private = wire
        value = of_fields.read({**given, **filled}, levels)
        value.__pydantic_fields_set__.difference_update(filled)
        known = type(value).__private_attributes__
        for name, part in read_map(private, read_any, levels - 1).items():
            if name not in known:
                raise ShapeError(f"has the private attribute {name!r}, which {type_name(type(value))} does not define", UnknownArgument)
            setattr(value, name, part)
        return value

    return msgspec.structs.replace(of_fields, write=write, read=read)


def _private_wires(value: Any, levels: int) -> dict[str, Any]:
    """Return private attributes that differ from their defaults, except those that cannot be sent and have no `__eq__`, such as locks."""
    wires: dict[str, Any] = {}
    for name, part in (value.__pydantic_private__ or {}).items():
        if _is_default(type(value).__private_attributes__[name], part):
            continue
        try:
            wires[name] = write_any(part, levels)
        except ShapeError as error:
            if "__eq__" in {name for kind in type(part).__mro__[:-1] for name in vars(kind)}:
                raise ShapeError("is a private attribute of a model and cannot be sent: make it a field").within(f".{name}") from error
    return wires


_UNDEFINED = object()


def _foreign(annotation: Any) -> Shape:
    """Return the shape of a type that only pydantic knows, such as a URL, or raise Unsupported. Its values are sent in their JSON form."""
    try:
        adapter = sys.modules["pydantic"].TypeAdapter(annotation)
    except Exception as error:
        raise Unsupported(f"{annotation!r} is supported neither by taskflow nor by pydantic: {type(error).__name__}") from error
    label = annotation.__name__ if isinstance(annotation, type) else str(annotation)

    def write(value: Any, levels: int) -> Any:
        try:
            wire = write_any(adapter.dump_python(value, mode="json"), levels)
            same = adapter.validate_python(read_any(wire, levels)) == value  # False for a secret, which pydantic masks
        except ShapeError:
            raise
        except Exception as error:
            raise ShapeError(f"cannot be sent as {label}: {raised(error)}") from error
        if not same:
            raise ShapeError(f"cannot be sent as {label}: a {type_name(type(value))} does not survive a round trip through JSON")
        return wire

    def read(wire: Any, levels: int) -> Any:
        value = read_any(wire, levels)
        try:
            return adapter.validate_python(value)
        except Exception as error:
            raise ShapeError(f"expected {label}: {raised(error)}") from error

    types = frozenset((annotation,)) if isinstance(annotation, type) else frozenset[type]()
    return Shape(label, write, read, read, types=types, forms=frozenset((bool, int, float, str, list, dict)))


def record_for(kind: type, arguments: tuple[Any, ...]) -> ClassFields | None:
    """Return the fields of `kind[arguments]`, or None for other kinds of classes. Raises Unsupported, or Unresolved for undefined names."""
    for is_one, build in _KINDS:
        if is_one(kind):
            return build(kind, arguments)
    return None


def _of_typed_dict(kind: Any, arguments: tuple[Any, ...]) -> ClassFields:
    hints = hints_of_class(kind, arguments)
    fields = tuple(ClassField(name, hint, _is_required(kind, name, hint)) for name, hint in hints.items())
    return ClassFields(dict, fields, make=dict, parts=lambda value: value if isinstance(value, dict) else None, has_tag=False)


def _is_required(kind: Any, name: str, hint: Any) -> bool:
    """Return True if a field is required. The annotation takes precedence, because the class is wrong about postponed annotations."""
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
    for name, field in kind.__dataclass_fields__.items():
        if repr(field._field_type) == "_FIELD_INITVAR":
            raise Unsupported(f"{kind.__qualname__}.{name} is an InitVar, which an instance does not keep; make it a field, or remove it")
    hints = hints_of_class(kind, arguments)
    declared, missing = dataclasses.fields(kind), dataclasses.MISSING
    fields = tuple(
        ClassField(each.name, hints[each.name], each.init and each.default is missing and each.default_factory is missing)
        for each in declared
    )
    late = [field.name for field in declared if not field.init]
    runs_code = any(hasattr(kind, name) for name in ("__post_init__", "__pydantic_validator__")) or _has_own_constructor(kind)
    return ClassFields(kind, fields, make=_maker(kind, {}, late), runs_code=runs_code)


def _has_own_constructor(kind: Any) -> bool:
    """Return True if the class has a handwritten `__init__` or `__new__`. A generated `__init__` has a file name such as "<string>"."""
    code = getattr(kind.__init__, "__code__", None)
    return code is None or not code.co_filename.startswith("<") or kind.__new__ is not object.__new__


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
    (lambda kind: hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_fields"), _of_model),
    (lambda kind: issubclass(kind, msgspec.Struct), _of_struct),
    (lambda kind: "__attrs_attrs__" in vars(kind), _of_attrs),
    (dataclasses.is_dataclass, _of_dataclass),
    (lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"), _of_named_tuple),
)
