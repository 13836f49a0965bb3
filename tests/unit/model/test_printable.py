"""Shown text is safe to show, whatever it contains."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, strategies as st

from taskflow.model.printable import INDENT, MAX_CHARACTERS, indented, message, one_line

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
DANGEROUS = ("Cc", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"


def is_safe(text: str) -> bool:
    return not any(unicodedata.category(c) in DANGEROUS or (unicodedata.category(c) == "Cf" and c not in JOINERS) for c in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Ünïcödé, 文字 and \U0001f600", "plain text, Ünïcödé, 文字 and \U0001f600"),
        ("\x1b[2J\x1b]52;c;aGk=\x07", "\\x1b[2J\\x1b]52;c;aGk=\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m \x7f \x85", "\\x9b31m \\x7f \\x85"),
        ("\u202eevil \u2066x\u2069 \u200b \ufeff", "\\u202eevil \\u2066x\\u2069 \\u200b \\ufeff"),
        ("\u2028 \u2029", "\\u2028 \\u2029"),
        ("\ud800 \U000e0041", "\\ud800 \\U000e0041"),
        ("non\u00a0breaking \u3000 \u200d", "non\u00a0breaking \u3000 \u200d"),
        ("C:\\new\\x1b", "C:\\new\\x1b"),
        ("", ""),
    ],
)
def test_characters_that_control_a_terminal_are_escaped(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(ANY_TEXT)
def test_one_line_is_one_line_of_safe_characters(text: str) -> None:
    assert is_safe(one_line(text))
    assert is_safe(one_line(text, 20))
    assert len(one_line(text, 20)) <= 20


@given(ANY_TEXT)
def test_each_line_of_a_block_is_safe_and_indented(text: str) -> None:
    for line in indented(text).split("\n"):
        assert is_safe(line)
        assert not line or line.startswith(INDENT)


def test_a_block_keeps_its_lines() -> None:
    assert indented("first\n  second\r\n\n\tthird\rforged\n") == "    first\n      second\n\n            third\\rforged"


def test_a_message_begins_where_it_is_put() -> None:
    assert message("cannot be read\nGRANT USAGE\x1b;") == "cannot be read\n    GRANT USAGE\\x1b;"


def test_long_text_is_cut() -> None:
    assert one_line("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    cut = one_line("x" * 1_000_000)
    assert len(cut) == MAX_CHARACTERS
    assert cut.endswith("x [... of 1,000,000 characters]")
    assert len(one_line("\x1b" * MAX_CHARACTERS)) == MAX_CHARACTERS
    assert one_line("x" * 100, 10) == "xxxxxxx..."
