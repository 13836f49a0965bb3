"""Payloads in a queue outlive the taskflow that wrote them: the bytes of today are the bytes of the files."""

from __future__ import annotations

import pytest

from tests.unit.codec.exactly import codec_of, same
from tests.unit.codec.golden_cases import ARGUMENTS, CALL, EVERY_PARAMETER, FOLDER, NAMES, golden, payload_of


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_always_was(name: str) -> None:
    assert payload_of(name).hex(" ") == golden(name).hex(" ")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_was_written_is_still_read(name: str) -> None:
    annotation, value = ARGUMENTS[name]
    [decoded], _ = codec_of(annotation).decode_arguments(golden(name))
    assert decoded == value if name.endswith("_enum_unannotated") else same(decoded, value)  # they arrive as plain text and number


def test_a_whole_call_is_still_read() -> None:
    assert EVERY_PARAMETER.decode_arguments(golden("every_parameter")) == CALL


def test_each_file_has_its_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.hex")} == set(NAMES)
