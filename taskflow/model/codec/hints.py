"""Resolves the annotations of functions and classes: forward references, type variables and inherited generics."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Generic, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from taskflow.model.batch import Failure
from taskflow.model.codec.shape import Unresolved, Unsupported


def hints_of_function(function: Callable[..., Any], names: Container[str]) -> dict[str, Any]:
    """Return the resolved annotations of the parameters in `names`. Raises Unresolved for an undefined name, or Unsupported."""
    source = _annotated(function)
    annotations = {name: annotation for name, annotation in getattr(source, "__annotations__", {}).items() if name in names}
    annotated = SimpleNamespace(__annotations__=annotations, __type_params__=getattr(source, "__type_params__", ()))
    try:
        return get_type_hints(annotated, getattr(source, "__globals__", {}), _closure(source), include_extras=True)
    except (NameError, AttributeError) as error:
        raise _unresolved(error, annotations, "") from error
    except Exception as error:
        raise Unsupported(f"an annotation cannot be evaluated: {type(error).__name__}: {error}") from error


def hints_of_item(hints: Mapping[str, Any]) -> dict[str, Any]:
    """Derive one job's annotations from the annotations of a function that takes and returns lists. Raises Unsupported if it doesn't."""
    return {name: _item(annotation, name) for name, annotation in hints.items()}


def _item(annotation: Any, name: str) -> Any:
    if annotation is Any:
        return Any
    is_result = name == "return"
    if get_origin(annotation) not in ((list, Sequence) if is_result else (list,)):
        example = "list[int] or list[int | Failure]" if is_result else "list[Doc]"
        what = "the function must return" if is_result else f"{name} must be"
        raise Unsupported(f"batch=: {what} a list with one element for each job, annotated as in {example}")
    [item] = get_args(annotation)
    if is_result and get_origin(item) in (Union, types.UnionType):
        kinds = tuple(kind for kind in get_args(item) if kind is not Failure)
        return Union[kinds] if kinds else None  # noqa: UP007
    return item


def _annotated(function: Any) -> Any:
    """Return the function whose annotations apply to a partial, a decorated function or an instance with `__call__`."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return function if hasattr(function, "__annotations__") and not isinstance(function, type) else type(function).__call__


def _closure(function: Any) -> dict[str, Any] | None:
    """Return the variables that the function uses from enclosing functions, or None. Annotations written as strings may refer to them."""
    code, found = getattr(function, "__code__", None), {}
    for name, cell in zip(code.co_freevars if code else (), getattr(function, "__closure__", None) or (), strict=True):
        with suppress(ValueError):  # the variable isn't assigned yet
            found[name] = cell.cell_contents
    return found or None


def hints_of_class(kind: type, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Return the annotation of each field of `kind[arguments]`, with type variables replaced. Raises Unresolved or Unsupported."""
    try:
        try:
            hints = get_type_hints(kind, include_extras=True)
        except NameError:  # a class defined in a function may refer to itself
            hints = get_type_hints(kind, localns={**vars(kind), kind.__name__: kind}, include_extras=True)
    except (NameError, AttributeError) as error:
        raise _unresolved(error, inspect.get_annotations(kind), f"{kind.__qualname__}.") from error
    except Exception as error:
        raise Unsupported(f"an annotation of {kind.__qualname__} cannot be evaluated: {type(error).__name__}: {error}") from error
    owners = _owners(kind, arguments)
    return {name: substitute(hint, _owner_of(name, kind, owners)) for name, hint in hints.items()}


def stands_for(name: Any, annotation: Callable[[], Any]) -> Any:
    """Return what an alias, a NewType or a type variable stands for. Strings in it are resolved in the module that defines `name`."""
    namespace = getattr(sys.modules.get(name.__module__), "__dict__", {})
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__={"value": annotation()}), namespace, include_extras=True)
    except (NameError, AttributeError) as error:
        raise _unresolved(error, {}, f"{name.__name__}, ") from error
    return hints["value"]


def _unresolved(error: NameError | AttributeError, annotations: Mapping[str, Any], prefix: str) -> Unresolved:
    """Return an Unresolved for an undefined name. A text search finds the annotation that uses it, because `error` has only the name."""
    missing = error.name or str(error)
    owners = [name for name, annotation in annotations.items() if missing in str(annotation)]
    return Unresolved(missing, prefix + (owners[0] if owners else "signature"))


_Bindings = Mapping[Any, Any]


def _owners(kind: type, arguments: tuple[Any, ...]) -> dict[type, _Bindings]:
    """Return the bindings of type variables for `kind[arguments]` and for each of its base classes, with base classes first."""
    bindings: _Bindings = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    found: dict[type, _Bindings] = {}
    for base in kind.__dict__.get("__orig_bases__", kind.__bases__):
        origin = get_origin(base) or base
        if isinstance(origin, type) and origin not in (object, Generic, Protocol):
            found |= _owners(origin, tuple(substitute(argument, bindings) for argument in get_args(base)))
    found.pop(kind, None)
    return {**found, kind: bindings}


def _owner_of(name: str, kind: type, owners: Mapping[type, _Bindings]) -> _Bindings:
    """Return the bindings of the most derived class that declares a field. TypedDicts repeat inherited fields, so the first one counts."""
    declaring = [bindings for owner, bindings in owners.items() if name in inspect.get_annotations(owner)]
    return next(iter(declaring if hasattr(kind, "__total__") else reversed(declaring)), {})


def substitute(annotation: Any, bindings: _Bindings) -> Any:
    """Replace the bound type variables in an annotation with their bindings."""
    if isinstance(annotation, TypeVar):
        return bindings.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    if not bindings or not parameters or isinstance(annotation, type):
        return annotation
    return annotation[tuple(bindings.get(parameter, parameter) for parameter in parameters)]
