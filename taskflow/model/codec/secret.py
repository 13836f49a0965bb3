"""`Secret` marks annotations whose values must not be shown, and `secret_names` finds the marked parameters and fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from taskflow.model.codec.classes import record_for
from taskflow.model.codec.compiler import unwrapped
from taskflow.model.codec.shape import Unresolved, Unsupported

RETURNED: Final = "return"
"""Stands for the result among the names of secrets."""


class Secret:
    """Marks a parameter, a field or a result whose value is not shown: ``token: Annotated[str, Secret]``.

    The command line prints "[hidden]" in its place. The value itself is sent, stored and passed to the function like any other. The mark
    may be inside of another annotation, as in ``list[Annotated[str, Secret]]``, which hides the whole list. It also applies to fields of
    dataclasses, TypedDicts and other classes. Each job carries the marked names, which are hidden wherever they occur in its arguments
    and its result.
    """

    def __init__(self) -> None:
        raise TypeError("Secret is not called: write Annotated[str, Secret]")


def secret_names(annotations: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names among these, and of fields in their types, whose annotation has the mark or contains a part without a name that
    has it. All names in the annotations must be defined."""
    found = set[str]()
    _walk(annotations.items(), found, set())
    return tuple(sorted(found))


def _walk(annotations: Iterable[tuple[str, Any]], found: set[str], seen: set[Any]) -> None:
    for owner, annotation in annotations:
        if _is_new((owner, annotation), seen):
            if get_origin(annotation) is Annotated and any(each is Secret for each in annotation.__metadata__):
                found.add(owner)
            else:
                _walk(_parts(owner, annotation), found, seen)


def _is_new(key: tuple[str, Any], seen: set[Any]) -> bool:
    try:
        is_new = key not in seen
    except TypeError:  # the metadata of an Annotated is unhashable; a type can only refer to itself by a name, which is hashable
        return True
    seen.add(key)
    return is_new


def _parts(owner: str, annotation: Any) -> list[tuple[str, Any]]:
    """Return the annotations directly inside this one, each with the name to which it belongs."""
    inner = unwrapped(annotation)
    if inner is not annotation:
        return [(owner, inner)]
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        return []
    try:
        record = record_for(origin, arguments) if isinstance(origin, type) else None
    except (Unsupported, Unresolved):  # only the library behind the class understands this annotation
        record = None
    if record is None:
        return [(owner, argument) for argument in arguments]
    return [(field.name, Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation) for field in record.fields]
