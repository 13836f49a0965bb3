"""Keys that a job's decorator declares, as in ``@job(key="{project_id}")``. Each call's key is formatted from its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import Parameter, signature
from pathlib import PurePath
from string import Formatter
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskflow.model.codec.classes import record_for
from taskflow.model.codec.hints import hints_of_function
from taskflow.model.codec.records import ClassFields
from taskflow.model.ids import check_key
from taskflow.model.suggestions import nearest

_FIELD: Final = re.compile(r"(?P<name>\w+)(?P<path>(?:\.\w+|\[[^][]+])*)")
_STEP: Final = re.compile(r"\.(\w+)|\[([^][]+)]")

# Only values whose text is the same in every process. The text of most other objects contains an address or an arbitrary order.
_PLAIN: Final = (str, int, float, Decimal, UUID, date, time, timedelta, PurePath, type(None))


def declared_key(template: str, job: Any) -> DeclaredKey | str:
    """Return the template of a job's keys, or the key itself if it is the same for all calls.
    Raises ValueError if a part of it does not fit the job's function."""
    key = DeclaredKey(template, job)
    return key.of((), {}) if key.is_constant else key


class DeclaredKey:
    """A template such as ``"{tenant}:{order.id}"``, which makes the key of each call."""

    def __init__(self, template: str, job: Any) -> None:
        self.template = template
        self._job_name = job.name
        self._parts = list(self._parsed(job))

    def __str__(self) -> str:
        return self.template

    @property
    def is_constant(self) -> bool:
        """True if the template names no parameter."""
        return all(part.field is None for part in self._parts)

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the key of a call whose arguments fit the function. Raises TypeError or ValueError if they make no valid key."""
        key = "".join(part.text if part.field is None else self._formatted(part.field, args, kwargs) for part in self._parts)
        try:
            return check_key(key)
        except ValueError as error:
            raise ValueError(f"{self._of_job()}: {error}") from None

    def _formatted(self, field: _TemplateField, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        try:
            value = field.value_in(args, kwargs)
            value = value.value if isinstance(value, Enum) else value
            if isinstance(value, _PLAIN):
                return format(value, field.spec)
        except Exception as error:  # a property of the argument, or a format that does not fit the value
            raise ValueError(f"{self._of_job()}: {field.text}: {type(error).__name__}: {error}") from error
        kind = "None" if value is None else f"a {type(value).__name__}"  # not the value itself, which may be secret
        raise TypeError(f"{self._of_job()}: {field.text} is {kind}: {_PLAIN_ONLY}")

    def _of_job(self) -> str:
        return f"key={self.template!r} of {self._job_name}"

    def _parsed(self, job: Any) -> list[_TemplatePart]:
        try:
            parsed = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f"key={self.template!r}: {error}; write {{{{ and }}}} for braces") from None
        parts = list[_TemplatePart]()
        for text, name, spec, conversion in parsed:
            parts.append(_TemplatePart(text, None))
            if name is not None:
                if conversion or "{" in (spec or ""):
                    raise ValueError(f"key={self.template!r}: {{{name}}} can have a format, but no conversion and no nested field")
                parts.append(_TemplatePart("", _field(self.template, name, spec or "", job)))
        return parts


_PLAIN_ONLY: Final = "a key takes text, numbers, dates, UUIDs, paths and enums; name an attribute or item that is one, as in {order.id}"


class _TemplateField(NamedTuple):
    """A parameter, and the steps from its value to the one that is formatted. `position` is None for a keyword-only parameter."""

    text: str
    name: str
    position: int | None
    has_name: bool
    default: Any
    steps: tuple[Callable[[Any], Any], ...]
    spec: str

    def value_in(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.position is not None and self.position < len(args):
            value = args[self.position]
        else:
            value = kwargs.get(self.name, self.default) if self.has_name else self.default
        for step in self.steps:
            value = step(value)
        return value


class _TemplatePart(NamedTuple):
    """A part of a template: text, or a field."""

    text: str
    field: _TemplateField | None


def _field(template: str, written: str, spec: str, job: Any) -> _TemplateField:
    said = f"key={template!r}"
    parameters = signature(job).parameters
    named = [name for name, each in parameters.items() if each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    known = f"the parameters are {', '.join(named)}" if named else "the function has no parameters that a key can name"
    found = _FIELD.fullmatch(written)
    if found is None or found["name"].isdigit():
        raise ValueError(f"{said}: {{{written}}} names no parameter; {known}")
    name = found["name"]
    if name not in named:
        near = nearest(name, named)
        if name in parameters:
            reason = "takes any number of values"
        elif name in signature(job.function).parameters:
            reason = "is the context, which callers do not pass"
        else:
            reason = f"is not a parameter; did you mean {near!r}?" if near else "is not a parameter"
        raise ValueError(f"{said}: {name!r} {reason}; {known}")
    steps = _STEP.findall(found["path"])
    for attribute, _ in steps:
        if attribute.startswith("_"):
            raise ValueError(f"{said}: {{{written}}} names the private attribute {attribute!r}")
    fields = _fields_of(job, name) if steps else None
    if fields is not None and not _has(fields, *steps[0]):
        names = ", ".join(field.name for field in fields.fields)
        raise ValueError(f"{said}: {{{written}}}: {name} has no {''.join(steps[0])!r}; its fields are {names}")
    parameter = parameters[name]
    position = None if parameter.kind is Parameter.KEYWORD_ONLY else list(parameters).index(name)
    has_name = parameter.kind is not Parameter.POSITIONAL_ONLY
    return _TemplateField(f"{{{written}}}", name, position, has_name, parameter.default, tuple(_step(*step) for step in steps), spec)


def _fields_of(job: Any, name: str) -> ClassFields | None:
    """Return the fields of a parameter's class, or None if they are not known, for example because the class is not defined yet."""
    with suppress(Exception):  # the codec reports annotations that it cannot use
        return record_for(hints_of_function(job.function, (name,))[name], ())
    return None


def _has(fields: ClassFields, attribute: str, item: str) -> bool:
    names = [field.name for field in fields.fields]
    if not fields.has_tag:  # a TypedDict
        return item in names
    return attribute in names or hasattr(fields.kind, attribute or "__getitem__")


def _step(attribute: str, item: str) -> Callable[[Any], Any]:
    if attribute:
        return lambda value: getattr(value, attribute)
    key = int(item) if item.isdecimal() else item
    return lambda value: value[key]
