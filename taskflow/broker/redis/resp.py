"""Packs commands and parses replies of RESP 2, with hiredis if it is installed, otherwise in Python."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from redis.exceptions import InvalidResponse

UNFINISHED: Final = object()
"""Returned by a reader's `gets` if the next reply hasn't arrived completely."""


class Reader:
    """Parses replies as `hiredis.Reader` does, for use without hiredis. The bytes of an unfinished reply are scanned only once."""

    def __init__(self, error_of: Callable[[str], Exception]) -> None:
        self._error_of = error_of
        self._received, self._at = bytearray(), 0
        self._parsing: Generator[None, None, Any] | None = None

    def feed(self, data: bytes) -> None:
        self._received += data

    def gets(self) -> Any:
        """Return the next reply, or `UNFINISHED`. A server error is also a reply. Raises InvalidResponse for anything else."""
        if self._parsing is None:
            del self._received[: self._at]
            self._at = 0
        parsing = self._parsing or self._reply()
        try:
            next(parsing)
        except StopIteration as done:
            self._parsing = None
            return done.value
        except ValueError as error:
            raise InvalidResponse(f"Protocol Error: {error}") from None
        self._parsing = parsing
        return UNFINISHED

    def _reply(self) -> Generator[None, None, Any]:
        looked = self._at
        while (end := self._received.find(b"\r\n", looked)) < 0:
            looked = max(self._at, len(self._received) - 1)
            yield
        kind, text = self._received[self._at : self._at + 1], bytes(self._received[self._at + 1 : end])
        self._at = end + 2
        if kind == b"$":
            return (yield from self._bulk(int(text)))
        if kind == b"*":
            replies = []
            for _ in range(number := int(text)):
                replies.append((yield from self._reply()))
            return None if number < 0 else replies
        if kind == b":":
            return int(text)
        if kind == b"+":
            return text
        if kind == b"-":
            return self._error_of(text.decode(errors="replace"))
        raise ValueError(f"got {bytes(kind)!r} as a reply's type")

    def _bulk(self, size: int) -> Generator[None, None, bytes | None]:
        if size < 0:
            return None
        while len(self._received) < self._at + size + 2:
            yield
        value = bytes(self._received[self._at : self._at + size])
        self._at += size + 2
        return value


def packed(command: Sequence[Any]) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    for value in command:
        raw = value if isinstance(value, bytes) else str(value).encode()
        parts += (b"$%d\r\n" % len(raw), raw, b"\r\n")
    return b"".join(parts)


_hiredis: Final[Any] = import_module("hiredis") if find_spec("hiredis") else None

pack: Final[Callable[[Sequence[Any]], bytes]] = packed if _hiredis is None else _hiredis.pack_command


def a_reader(error_of: Callable[[str], Exception]) -> Any:
    """Return a reader for one connection's replies. `error_of` turns an error's text into an exception."""
    if _hiredis is None:
        return Reader(error_of)
    return _hiredis.Reader(protocolError=InvalidResponse, replyError=error_of, notEnoughData=UNFINISHED)
