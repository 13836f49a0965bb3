"""Decides which functions can be jobs, and which of them take a context."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from taskflow.app.context import JobContext
from taskflow.app.registry import place
from taskflow.model.errors import DeclarationError
from taskflow.model.shown import shown


def check_function(function: Any) -> None:
    """Raise DeclarationError if a worker could not call `function`: if it is not a function, or is a method or a generator."""
    code: Any = getattr(function, "__func__", function)
    if isinstance(function, staticmethod):
        raise DeclarationError(f"@job on {place(function)}: write @staticmethod above @job, so that @job gets the function itself")
    if inspect.ismethod(function) or isinstance(function, classmethod) or _is_in_a_class(function):
        raise DeclarationError(
            f"@job on {place(code)}: methods cannot be jobs, because a worker has no object to call them on; "
            "make it a module-level function, and pass the object's data or id as an argument"
        )
    if not inspect.isroutine(function) or inspect.isbuiltin(function):
        hint = f"; to set the name, write @job(name={function!r})" if isinstance(function, str) else ""
        raise DeclarationError(f"@job takes a function, not {shown(function)}{hint}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(f"@job on {place(function)}: a job cannot yield; return a list, or report with ctx.progress()")


def _is_in_a_class(function: object) -> bool:
    """Return True for a function in a class body whose first parameter is self or cls. Other functions there need no object."""
    around, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    if not inspect.isfunction(function) or not around or around.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), None) in ("self", "cls")


def takes_context(function: Callable[..., Any]) -> bool:
    """Return True if the first parameter is annotated with JobContext, also in a string that cannot be resolved yet."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    annotation = first.annotation
    if isinstance(annotation, str):
        namespace = getattr(inspect.unwrap(function), "__globals__", {})
        head, _, rest = annotation.strip("'\" ").partition(".")
        annotation = namespace.get(head, JobContext if head == JobContext.__name__ else None)
        for attribute in rest.split(".") if rest else ():
            annotation = getattr(annotation, attribute, None)
    return annotation is JobContext


def signature_for_callers(function: Callable[..., Any], *, skip: int) -> inspect.Signature:
    """Return the signature without the `skip` first parameters, which are injected."""
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[skip:])
