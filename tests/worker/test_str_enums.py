"""Members of a str enum as queue, key, header or name: every store shows the text itself."""

from __future__ import annotations

from enum import Enum

from taskflow import job


class Word(str, Enum):  # noqa: UP042  # whose text is "Word.HIGH", unlike that of a StrEnum
    HIGH = "high"
    NAME = "tests.str_enums.named"
    BEFORE = "tests.str_enums.before"


@job(name=Word.NAME, aliases=(Word.BEFORE,), queue=Word.HIGH)
async def named() -> str:
    return "done"


def test_what_is_declared_is_plain() -> None:
    """A plain str in place of the member, in the job and in each envelope."""
    call = named.options(key=Word.HIGH, headers={Word.HIGH: Word.HIGH})
    envelope = call.bind().envelope
    [(header, value)] = envelope.headers.items()
    for text in (named.name, *named.aliases, named.queue, call.key, envelope.queue, envelope.job, header, value):
        assert type(text) is str
    assert (str(named.name), str(envelope.queue), str(value)) == (Word.NAME.value, "high", "high")
