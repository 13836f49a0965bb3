"""Enums, Flags and Literals whose values are odd: beyond 64 bits, or alike as text."""

from __future__ import annotations

from datetime import date
from enum import Enum, Flag, IntFlag
from typing import Any, Literal

import pytest

from taskflow.model.codec import seal_json
from taskflow.model.errors import DecodeError
from tests.unit.codec.exactly import codec_of, same, there_and_back


class Wide(Flag):
    LOW = 1
    BIT_63 = 1 << 63
    BIT_64 = 1 << 64
    BIT_200 = 1 << 200


class WideInt(IntFlag):
    LOW = 1
    BIT_64 = 1 << 64


class Big(Enum):
    BIG = 2**70
    SMALL = -(2**70)


class Alike(Enum):
    TEXT = "1"
    NUMBER = 1
    HALF = 0.5
    DAY = date(2024, 1, 1)
    LISTED = [1, "a"]


def from_json(annotation: Any, body: str) -> Any:
    (value,), _ = codec_of(annotation).decode_arguments(seal_json(f'{{"value": {body}}}'.encode()))
    return value


@pytest.mark.parametrize(
    "value", [Wide.BIT_63, Wide.BIT_64, Wide.LOW | Wide.BIT_200, Wide(0), WideInt.BIT_64, WideInt.BIT_64 | WideInt.LOW], ids=repr
)
def test_a_flag_of_more_than_64_bits_comes_back(value: Flag) -> None:
    kind = type(value)
    assert there_and_back(kind, value) is value
    assert there_and_back(kind | str, value) is value
    assert there_and_back(kind | int, value) is value, "told apart from an int"
    assert there_and_back(kind | int, 2**100) == 2**100
    assert from_json(kind, str(value.value)) is value


def test_a_flag_refuses_bits_beyond_64_that_it_does_not_have() -> None:
    for body in (str(1 << 65), str(1 << 300), str(-(1 << 65))):
        with pytest.raises(DecodeError, match=r"value: expected .*Wide, got unknown bits"):
            from_json(Wide, body)


@pytest.mark.parametrize("body", [str(2**70), str(-(2**70)), str(2**64), str(10**300)])
@pytest.mark.parametrize("annotation", [Alike, Literal[1, "a"], Literal[1] | None, Literal["a"]], ids=repr)
def test_a_json_integer_beyond_64_bits_is_no_choice(annotation: Any, body: str) -> None:
    for written in (body, f"[{body}]", f'{{"a": [{body}]}}'):
        with pytest.raises(DecodeError, match=r"value: expected "):
            from_json(annotation, written)


@pytest.mark.parametrize("annotation", [Big, Literal[1180591620717411303424, "a"]], ids=repr)
def test_a_choice_beyond_64_bits_is_found_in_json(annotation: Any) -> None:
    value = Big.BIG if annotation is Big else 2**70
    assert from_json(annotation, str(2**70)) == value
    assert same(there_and_back(annotation, value), value)


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ("1", Alike.NUMBER),
        ('"1"', Alike.TEXT),
        ("0.5", Alike.HALF),
        ('"2024-01-01"', Alike.DAY),
        ('[1, "a"]', Alike.LISTED),
    ],
)
def test_a_value_in_json_is_its_own_before_it_is_anothers_text(body: str, member: Alike) -> None:
    assert from_json(Alike, body) is member


@pytest.mark.parametrize("member", list(Alike), ids=lambda member: member.name)
def test_values_that_look_alike_come_back_as_themselves(member: Alike) -> None:
    assert there_and_back(Alike, member) is member
