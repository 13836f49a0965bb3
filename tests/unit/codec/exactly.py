"""Equality that is as strict as the codec's promise: the same types at all levels, and -0.0, NaN, folds and zones are distinguished."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import datetime, time
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pydantic
from hypothesis import settings

from taskflow.model.codec import FunctionCodec, Limits

quick = settings(derandomize=True, database=None, deadline=None, max_examples=150)


def codec_of(annotation: Any, result: Any = None, limits: Limits | None = None) -> FunctionCodec:
    """Return the codec of a function with one argument, called `value`, with that annotation."""

    def function(value: Any) -> Any: ...

    function.__annotations__ = {"value": annotation, "return": result}
    return FunctionCodec(function, name="app.job", limits=limits or Limits())


def there_and_back(annotation: Any, value: Any) -> Any:
    codec = codec_of(annotation)
    (decoded,), by_name = codec.decode_arguments(codec.encode_arguments((value,), {}))
    assert by_name == {}
    return decoded


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, datetime | time):
        return (
            one.replace(tzinfo=None) == other.replace(tzinfo=None)
            and one.fold == other.fold
            and repr(one.tzinfo) == repr(other.tzinfo)
            and one.utcoffset() == other.utcoffset()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and all(any(same(mine, theirs) for theirs in other) for mine in one)
    if isinstance(one, Mapping):
        return same(list(one.keys()), list(other.keys())) and same(list(one.values()), list(other.values()))
    parts = _parts(one)
    return one == other if parts is None else same(dict(parts), dict(_parts(other) or {}))


def _parts(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, pydantic.BaseModel):
        return {**value.__dict__, "fields set": value.model_fields_set, "private": value.__pydantic_private__}
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if attrs.has(type(value)):
        return attrs.asdict(value, recurse=False)
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
