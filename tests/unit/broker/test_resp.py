"""The parser in Python returns what hiredis returns, however the bytes of a reply arrive."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from redis.exceptions import InvalidResponse, ResponseError

from taskflow.broker.redis.resp import UNFINISHED, Reader, a_reader, pack, packed

STREAM = (
    b"+OK\r\n:-7\r\n$-1\r\n$0\r\n\r\n$5\r\na\r\nbc\r\n*3\r\n:1\r\n*0\r\n$2\r\nxy\r\n*-1\r\n-ERR \xff no\r\n*2\r\n-WRONGTYPE of key\r\n+\r\n"
)
REPLIES = [b"OK", -7, None, b"", b"a\r\nbc", [1, [], b"xy"], None, "ERR \ufffd no", ["WRONGTYPE of key", b""]]


def plainly(reply: object) -> object:
    return [plainly(each) for each in reply] if isinstance(reply, list) else str(reply) if isinstance(reply, Exception) else reply


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("reader", [Reader, a_reader])
def test_replies_are_parsed_in_pieces_of_any_size(size: int, reader: type[Reader]) -> None:
    parser, replies = reader(ResponseError), list[object]()
    for at in range(0, len(STREAM), size):
        parser.feed(STREAM[at : at + size])
        while (reply := parser.gets()) is not UNFINISHED:
            replies.append(plainly(reply))
    assert replies == REPLIES
    assert not isinstance(parser, Reader) or not parser._received  # nothing is kept


@pytest.mark.parametrize("nonsense", [b"!1\r\n", b"$x\r\n", b"HTTP/1.1 400 Bad Request\r\n", b":1.5\r\n"])
def test_bytes_that_are_not_a_reply_are_an_error(nonsense: bytes) -> None:
    parser = Reader(ResponseError)
    parser.feed(nonsense)
    with pytest.raises(InvalidResponse, match="Protocol Error"):
        parser.gets()


def test_a_command_is_packed_as_by_hiredis() -> None:
    command = ("EVALSHA", "häsh", 1, b"k\r\n", 2.5, "")
    assert packed(command) == b"*6\r\n$7\r\nEVALSHA\r\n$5\r\nh\xc3\xa4sh\r\n$1\r\n1\r\n$3\r\nk\r\n\r\n$3\r\n2.5\r\n$0\r\n\r\n"
    assert pack(command) == packed(command)
    assert (pack is packed) is (find_spec("hiredis") is None)
