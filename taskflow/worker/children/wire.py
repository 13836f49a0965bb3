"""What a worker and a child of its say to each other, over a socket of their own: a length in 4 bytes, big-endian, then msgpack.

Arguments and results travel as the payloads that they are in the store: they are decoded and encoded in the child, as annotated.

    worker   Hello; then any number of Import and Run, each after the last one's answer; to hang up means: end
    child    to Hello and Import: Ready; to Run: any number of Reported, then RunEnded or CallRefused
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgpack
import msgspec

from taskflow.model.envelope import Lease
from taskflow.model.verdict import Cancelled, Discarded, Failed, HandedBack, Parked, Retried, Snoozed, Succeeded, Verdict

BESIDES: Final = 1 << 20
"""Bytes of a message besides a payload: names, headers, an error, and room to spare."""

_LENGTH: Final = struct.Struct(">I")
_VERDICTS: Final = {kind.__name__: kind for kind in (Cancelled, Discarded, Failed, HandedBack, Parked, Retried, Snoozed, Succeeded)}


class Garbled(Exception):
    """What came over the wire is none of this: a job has written to a descriptor that is not its own."""


class Message(msgspec.Struct, frozen=True):
    kind: ClassVar[str]


class Hello(Message, frozen=True, kw_only=True):
    """`modules`         what the worker was told to import
    `arguments`       the worker's own sys.argv, which an application may look into
    `settings`        those of the worker that hold here too
    `is_reachable`    whether the worker's broker can be reached from another process
    `has_lifespan`    whether the worker has one, whose state is not here
    `log_level`       of the root logger
    """

    kind = "hello"
    modules: tuple[str, ...]
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    is_reachable: bool
    has_lifespan: bool
    log_level: int


class Import(Message, frozen=True):
    """Where jobs are declared that come next. `main` is how to import the worker's main module, when it is that: a module's name, or a
    file's absolute path."""

    kind = "import"
    module: str
    main: str | None = None


class Run(Message, frozen=True):
    """`module` is where the job is declared."""

    kind = "run"
    lease: Lease
    module: str


class Ready(Message, frozen=True):
    """All that could be imported is. `memory` is the child's, in bytes."""

    kind = "ready"
    memory: int


class Reported(Message, frozen=True):
    """ctx.progress()"""

    kind = "reported"
    fraction: float
    note: str


class RunEnded(Message, frozen=True):
    """What the run came to. `is_whole` claims that all that was to be imported is there."""

    kind = "ended"
    verdict: Verdict
    memory: int
    is_whole: bool


class CallRefused(Message, frozen=True):
    """The job is not to be found here: `why`, and what was raised. A fresh child may find it."""

    kind = "refused"
    why: str
    traceback: str


_MESSAGES: Final = {message.kind: message for message in (Hello, Import, Run, Ready, Reported, RunEnded, CallRefused)}


def pack(message: Message) -> bytes:
    """The bytes to send."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    if isinstance(message, RunEnded):
        fields["verdict"] = [type(message.verdict).__name__, message.verdict]
    # An error's message may hold half of a surrogate pair, which is no UTF-8.
    body = msgpack.packb([message.kind, msgspec.to_builtins(fields, builtin_types=(bytes,))], unicode_errors="surrogatepass")
    assert body is not None
    return _LENGTH.pack(len(body)) + bytes(body)


class Unpacker:
    """Puts messages together from the bytes that arrive. Raises Garbled, also for a message of more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._received = bytearray()

    def feed(self, received: bytes) -> Iterator[Message]:
        self._received += received
        while (body := self._next_body()) is not None:
            yield _read(body)

    def _next_body(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > self._most:
            raise Garbled(f"a message of {length:,} bytes, more than {self._most:,}")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        body = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return body


def _read(body: bytes) -> Message:
    try:
        kind, fields = msgpack.unpackb(body, unicode_errors="surrogatepass")
        if kind == RunEnded.kind:
            name, of_verdict = fields["verdict"]
            fields["verdict"] = msgspec.convert(of_verdict, _VERDICTS[name])
            return RunEnded(**fields)
        message: Message = msgspec.convert(fields, _MESSAGES[kind])
        return message
    except Exception as error:
        raise Garbled(f"a message that cannot be read ({type(error).__name__}: {error})") from error
