"""Keys that a job's decorator declares, as in ``@job(key="{project_id}")``: templates that are formatted from a call's arguments."""

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
from typing import Any, Final
from uuid import UUID

from taskflow.model.codec import FunctionCodec
from taskflow.model.codec.classes import ClassFields, record_for
from taskflow.model.errors import EncodeError
from taskflow.model.ids import MAX_KEY_BYTES, check_key
from taskflow.model.masking import HIDDEN, is_secret as has_secret_name
from taskflow.model.printable import nearest

_FIELD: Final = re.compile(r"(?P<name>\w+)(?P<path>(?:\.\w+|\[[^][]+])*)(?:\?(?P<none>.*))?", re.DOTALL)
_STEP: Final = re.compile(r"\.(\w+)|\[([^][]+)]")

# Only values whose text is the same in every process. The text of most other objects contains an address or an arbitrary order.
PLAIN: Final = (str, int, float, Decimal, UUID, date, time, timedelta, PurePath)

_MAX_LENGTH: Final = 10_000
"""The maximum number of digits or characters of a value, and its maximum exponent. Longer values are useless as keys and slow to
format: 1E+50000000 becomes a text of 50 MB."""


def declared_key(template: str, job: Any) -> DeclaredKey | str:
    """Return the template of a job's keys, or the key itself if the template has no fields. Raises ValueError for an invalid template."""
    key = DeclaredKey(template, job)
    return key.key_and_text((), {})[0] if all(isinstance(part, str) for part in key._parts) else key


class DeclaredKey:
    """A template such as ``"{tenant}:{order.id}"``, from which the key of each call is made."""

    def __init__(self, template: str, job: Any, said: str | None = None) -> None:
        """Errors quote `said` as what the decorator was given; the template if it's None."""
        self.template, self._said = template, said or f"key={template!r}"
        self._job_name = job.name
        self._codec: FunctionCodec = job.codec
        self._parts = self._parsed(job)

    def __str__(self) -> str:
        return self.template

    @property
    def parameters(self) -> set[str]:
        """The names of the parameters whose values the template uses."""
        return {part.name for part in self._parts if not isinstance(part, str)}

    @property
    def is_secret(self) -> bool:
        """True if one of the fields is secret."""
        return any(self._hides(part) for part in self._parts if not isinstance(part, str))

    def _hides(self, field: _TemplateField) -> bool:
        return not field.names.isdisjoint(self._codec.secrets) or any(map(has_secret_name, field.names))

    def key_and_text(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """Return the key of a call, and the text that is stored and shown for it, without secrets. Raises TypeError or ValueError if the
        arguments fit the function but do not make a valid key."""
        pieces = [(part, False) if isinstance(part, str) else self._formatted(part, args, kwargs) for part in self._parts]
        key = "".join(piece for piece, _ in pieces)
        text = "".join(HIDDEN if is_secret else piece for piece, is_secret in pieces)
        try:
            return check_key(key, text), text
        except ValueError as error:
            raise ValueError(f"{self._of_job()}: {error}") from None

    def _formatted(self, field: _TemplateField, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, bool]:
        """Return the text of a field, and True if it is secret. Raises TypeError or ValueError if the value cannot be part of a key."""
        is_secret = self._hides(field)
        try:
            value = field.value_in(args, kwargs, self._codec)
            value = value.value if isinstance(value, Enum) else value
            if value is None and field.none is not None:
                return field.none, False
            if isinstance(value, PLAIN):
                if _is_long(value):
                    raise ValueError(f"it has more than {_MAX_LENGTH:,} digits or characters")
                return format(value, field.spec), is_secret
        except Exception as error:  # from a property of the argument, or from a format that does not fit the value
            found = type(error).__name__ if is_secret else f"{type(error).__name__}: {error}"
            raise ValueError(f"{self._of_job()}: {field.text}: {found}") from None if is_secret else error
        if value is None:
            raise TypeError(f"{self._of_job()}: {field.text} is None: add a text for None, as in {{{field.written}?none}}")
        raise TypeError(f"{self._of_job()}: {field.text} is a {type(value).__name__}: {_PLAIN_ONLY}")  # the value may be secret

    def _of_job(self) -> str:
        return f"{self._said} of {self._job_name}"

    def _parsed(self, job: Any) -> list[str | _TemplateField]:
        try:
            parsed = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f"key={self.template!r}: {error}; write {{{{ and }}}} for braces") from None
        parts = list[str | _TemplateField]()
        for text, name, spec, conversion in parsed:
            parts.append(text)
            if name is not None:
                if conversion or "{" in (spec or ""):
                    raise ValueError(f"key={self.template!r}: {{{name}}} can have a format, but no conversion and no nested field")
                if any(len(number) > 4 or int(number) > MAX_KEY_BYTES for number in re.findall(r"\d+", spec or "")):
                    raise ValueError(
                        f"key={self.template!r}: the format of {{{name}}} has a number above {MAX_KEY_BYTES}, the maximum size of a key"
                    )
                parts.append(_field(self._said, name, spec or "", job))
        return parts


_PLAIN_ONLY: Final = "a key accepts text, numbers, dates, UUIDs, paths and enums; use an attribute or item of such a type, as in {order.id}"


class _TemplateField:
    """A field of a template: a parameter, and the steps (attributes or items) from its value to the formatted one. `none` is the text that
    replaces a value of None; None if the template has no such text. `names` has the parameter's name and those of the steps."""

    def __init__(self, parameter: Parameter, position: int, found: re.Match[str], steps: Sequence[tuple[str, str]], spec: str) -> None:
        self.text = f"{{{found[0]}}}"
        self.written = f"{found['name']}{found['path']}"
        self.name = parameter.name
        self.names = frozenset((parameter.name, *(attribute or item for attribute, item in steps)))
        self.none: str | None = found["none"]
        self.spec = spec
        self._position = None if parameter.kind is Parameter.KEYWORD_ONLY else position
        self._has_name = parameter.kind is not Parameter.POSITIONAL_ONLY
        self._default = parameter.default
        self._steps = [_step(*step) for step in steps]
        self._as_sent: Callable[[Any], Any] | None = None

    def value_in(self, args: Sequence[Any], kwargs: Mapping[str, Any], codec: FunctionCodec) -> Any:
        """Return the field's value as the run will get it. Names in annotations are resolved by now, because the call has been encoded."""
        if self._as_sent is None:
            as_sent = codec.as_sent(self.name)
            with suppress(EncodeError):  # a default that does not fit its annotation is used as it is
                self._default = as_sent(self._default)
            self._as_sent = as_sent  # set last, because it shows other threads that the default is converted too
        if self._position is not None and self._position < len(args):
            value = self._as_sent(args[self._position])
        elif self._has_name and self.name in kwargs:
            value = self._as_sent(kwargs[self.name])
        else:
            value = self._default
        for step in self._steps:
            if value is None and self.none is not None:
                return None
            value = step(value)
        return value


def _is_long(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() > 4 * _MAX_LENGTH
    return (isinstance(value, str) and len(value) > _MAX_LENGTH) or (isinstance(value, Decimal) and abs(value.adjusted()) > _MAX_LENGTH)


def _field(said: str, written: str, spec: str, job: Any) -> _TemplateField:
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
            kind = "a dependency" if name in job.dependencies else "the context"
            reason = f"is {kind}, which callers do not pass"
        else:
            reason = f"is not a parameter; did you mean {near!r}?" if near else "is not a parameter"
        raise ValueError(f"{said}: {name!r} {reason}; {known}")
    steps = _STEP.findall(found["path"])
    for attribute, _ in steps:
        if attribute.startswith("_"):
            raise ValueError(f"{said}: {{{written}}} names the private attribute {attribute!r}")
    fields: ClassFields | None = None
    with suppress(Exception):  # the codec reports annotations that it cannot use; a class may not be defined yet
        fields = record_for(job.codec.hints((name,))[name], ()) if steps else None
    if fields is not None and not _has(fields, *steps[0]):
        names = ", ".join(field.name for field in fields.fields)
        raise ValueError(f"{said}: {{{written}}}: {name} has no {''.join(steps[0])!r}; its fields are {names}")
    return _TemplateField(parameters[name], list(parameters).index(name), found, steps, spec)


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
