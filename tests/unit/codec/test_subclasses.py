"""Without an annotation, an instance of a subclass of str, int or float arrives as the plain text or number that it is equal to."""

from __future__ import annotations

from enum import Enum, IntFlag
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from taskflow.model.codec import decode_value
from taskflow.model.codec.payload import seal
from taskflow.model.codec.wire import PATH, Ext, pack
from taskflow.model.errors import DecodeError, EncodeError
from tests.support.ids import stable_id
from tests.unit.codec import kinds as k
from tests.unit.codec.exactly import codec_of, same, there_and_back


class SafeString(str):
    """As Django marks text that is safe in HTML."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __html__(self) -> str:
        return self


class Shade(str, Enum):  # noqa: UP042
    """As applications wrote it before StrEnum."""

    DARK = "dark"


class Metres(float):
    """As numpy's float64 is one."""


class Bits(IntFlag):
    ONE = 1


class Pretender:
    """As a proxy pretends to be what it stands for."""

    __class__ = str  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (SafeString("<b>"), "<b>"),
        (k.Mode.FAST, "fast"),
        (Shade.DARK, "dark"),
        (k.Level.HIGH, 2),
        (Bits.ONE, 1),
        (Metres(0.5), 0.5),
        ({k.Mode.FAST: [k.Level.LOW]}, {"fast": [1]}),
        ({k.Level.LOW: {Shade.DARK}}, {1: {"dark"}}),
    ],
    ids=stable_id,
)
@pytest.mark.parametrize("annotation", [Any, Any | k.Point])
def test_it_arrives_plain(value: Any, plain: Any, annotation: Any) -> None:
    assert same(there_and_back(annotation, value), plain)
    assert codec_of(annotation).encode_arguments((value,), {}) == codec_of(annotation).encode_arguments((plain,), {})


@pytest.mark.parametrize("value", [k.Color.RED, Pretender(), k.Pin(1), k.Plain()], ids=stable_id)
def test_an_instance_of_another_class_is_refused(value: Any) -> None:
    with pytest.raises(EncodeError, match="cannot be sent by itself: annotate"):
        codec_of(Any).encode_arguments((value,), {})


@pytest.mark.parametrize("annotation", [Any, str])
def test_a_lazy_text_is_refused(annotation: Any) -> None:
    """Its text depends on the language that is active where it is made, which may be the worker."""
    lazy = pytest.importorskip("django.utils.functional").lazystr("a")
    with pytest.raises(EncodeError, match="__proxy__"):
        codec_of(annotation).encode_arguments((lazy,), {})
    assert there_and_back(annotation, str(lazy)) == "a"


def test_a_lone_surrogate_is_refused_in_a_subclass_too() -> None:
    with pytest.raises(EncodeError, match="lone surrogate"):
        codec_of(Any).encode_arguments((SafeString("\ud800"),), {})


@pytest.mark.parametrize(("stored", "here"), [(b"Wa\\b", Path("a/b")), (b"W", Path())])
def test_a_relative_path_of_another_system_becomes_one_of_this_system(stored: bytes, here: Path) -> None:
    assert same(decode_value(seal(pack(Ext(PATH, stored)))), here)


@pytest.mark.parametrize("stored", [b"WC:\\a", b"WC:a", b"W\\a", b"W\\\\host\\share\\a"])
def test_an_absolute_path_of_another_system_is_refused(stored: bytes) -> None:
    with pytest.raises(DecodeError, match="is a WindowsPath that has no meaning on this system"):
        decode_value(seal(pack(Ext(PATH, stored))))


def test_a_text_is_no_path_and_a_pure_path_no_concrete_one() -> None:
    for value in ("a", PureWindowsPath("a")):
        with pytest.raises(EncodeError, match="expected Path, got"):
            codec_of(Path).encode_arguments((value,), {})
