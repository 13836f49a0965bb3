"""Decides which functions can be jobs, which of them take a context, and what they are called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskflow.app.context import JobContext
from taskflow.app.execution_mode import RUN_AS_MAIN
from taskflow.model.envelope import check_job_name
from taskflow.model.errors import DeclarationError
from taskflow.model.printable import shown


def check_function(function: Any) -> None:
    """Raise DeclarationError if `function` cannot be a job, because it is a method, a generator or not a function at all."""
    code: Any = getattr(function, "__func__", function)
    if isinstance(function, staticmethod):
        raise DeclarationError(f"@job on {location(function)}: write @staticmethod above @job, so that @job gets the function itself")
    if inspect.ismethod(function) or isinstance(function, classmethod) or _is_in_a_class(function):
        raise DeclarationError(
            f"@job on {location(code)}: methods cannot be jobs, because a worker has no object to call them on; "
            "make it a module-level function, and pass the object's data or id as an argument"
        )
    if not inspect.isroutine(function) or inspect.isbuiltin(function):
        hint = f"; to set the name, write @job(name={function!r})" if isinstance(function, str) else ""
        raise DeclarationError(f"@job takes a function, not {shown(function)}{hint}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(f"@job on {location(function)}: a job cannot yield; return a list, or report with ctx.progress()")
    if inspect.iscoroutinefunction(inspect.unwrap(function)) and not inspect.iscoroutinefunction(function):
        raise DeclarationError(
            f"@job on {location(function)}: a decorator wraps this async function in a plain one, so nothing would await it. "
            "Write its wrapper with `async def` and `await`, or without functools.wraps if it runs the function to its end"
        )


def _is_in_a_class(function: object) -> bool:
    """Return True if the function is defined in a class body and its first
    parameter is self or cls. Other functions in a class body can be called without an object."""
    around, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    if not inspect.isfunction(function) or not around or around.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), None) in ("self", "cls")


def takes_context(function: Callable[..., Any]) -> bool:
    """Return True if the first parameter is annotated with JobContext, even if the annotation is a string that cannot be resolved yet."""
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
    """Return the signature without the first `skip` parameters, which taskflow supplies."""
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[skip:])


def name_of(function: Callable[..., Any]) -> str:
    """Return the default name of a job: the module from which a worker imports the function, then the function's qualified name. Raises
    DeclarationError for a function inside a function."""
    if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
        raise DeclarationError(f"{location(function)}: a worker cannot import a function inside a function by name; set name=")
    return check_job_name(f"{_module_of(function)}.{function.__qualname__}")


def location(function: Callable[..., Any]) -> str:
    """Return a function's file, line and name, for messages."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} ({function.__qualname__})" if code else repr(function)


def _module_of(function: Callable[..., Any]) -> str:
    if function.__module__ not in RUN_AS_MAIN:
        return function.__module__
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    spec = scope.get("__spec__")
    if spec is not None and spec.name not in RUN_AS_MAIN:  # python -m package.module
        return str(spec.name)
    return _dotted(Path(scope.get("__file__") or "__main__.py").resolve())


def _dotted(file: Path) -> str:
    """Return the module name under which a worker would import a script. It is the script's path relative to the nearest enclosing folder
    that is on sys.path or is the current folder. If there is none, it is the file's name.

    The script's own folder, which Python adds to sys.path, is used only if it is also the current folder.
    """
    here = Path.cwd().resolve()
    folders = {Path(entry).resolve() for entry in sys.path if entry} - {file.parent} | {here}
    above = [folder for folder in folders if file.is_relative_to(folder)]
    relative = file.relative_to(max(above, key=lambda folder: len(folder.parts))) if above else Path(file.name)
    return ".".join(relative.with_suffix("").parts)
