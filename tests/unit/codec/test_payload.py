"""The four bytes before every body: what is newer is told apart from what is broken."""

from __future__ import annotations

import pytest

from taskflow.model.codec import Content, Limits, decode_value, encode_value, open_payload, seal_json
from taskflow.model.errors import DecodeError, NewerFormat
from tests.unit.codec.exactly import codec_of

CODEC = codec_of(int)
MEGABYTE = 1 << 20


def test_content_and_body_come_apart() -> None:
    assert open_payload(encode_value(None)) == (Content.MSGPACK, b"\xc0")
    assert open_payload(seal_json(b"null")) == (Content.JSON, b"null")


NEWER = ["02000001", "00000001", "ff", "ff0000", "01010001", "01020001", "01040001", "01800001", "01000101", "01000000", "01000003"]


@pytest.mark.parametrize("header", NEWER)
def test_what_a_newer_taskflow_wrote_is_told_as_such(header: str) -> None:
    for decode in (CODEC.decode_arguments, CODEC.decode_result, decode_value, open_payload):
        with pytest.raises(NewerFormat):
            decode(bytes.fromhex(header) + b"\x80")


@pytest.mark.parametrize("header", ["", "01", "010000"])
def test_what_is_too_short_to_be_a_payload_is_none(header: str) -> None:
    with pytest.raises(DecodeError, match="a payload has at least 4 bytes") as caught:
        decode_value(bytes.fromhex(header))
    assert type(caught.value) is DecodeError


def test_a_payload_larger_than_the_limit_is_not_read() -> None:
    with pytest.raises(DecodeError, match="has 1,048,581 bytes, but the limit is 1,048,576"):
        decode_value(encode_value(b"x" * (MEGABYTE - 4), limits=Limits(size=2 * MEGABYTE)))
