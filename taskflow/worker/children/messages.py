"""The messages between a worker and a child. On the socket, each consists of a 4-byte big-endian length and a msgpack body.

Arguments and results are sent as stored payloads, which the child decodes and encodes as the annotations require.

    worker   Handshake, then any number of Import and Run, each after the answer to the previous one; Stop at any time during a run. To
             end the child, the worker closes the socket
    child    Ready in answer to Handshake; Ready or CallRefused in answer to Import. In answer to Run, any number of Reported and
             Completing, then Finished or CallRefused
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack
import msgspec

from taskflow.model.envelope import Lease
from taskflow.model.errors import TaskflowError
from taskflow.model.verdict import Cancelled, Completed, Discarded, Failed, HandedBack, Parked, Retried, Snoozed, Succeeded, Verdict

# The maximum number of bytes that a message has in addition to a payload: names, headers, an error, and some reserve.
OVERHEAD: Final = 1 << 20

# The settings that a child process must also have if the worker has them.
CHILD_HOOKS: Final = ("child_initializer", "child_lifespan")

_LENGTH: Final = struct.Struct(">I")
_VERDICTS: Final = {kind.__name__: kind for kind in (Cancelled, Discarded, Failed, HandedBack, Parked, Retried, Snoozed, Succeeded)}


class ProtocolError(Exception):
    """The received bytes are not a message: a job has probably written to one of taskflow's file descriptors."""


class Message(msgspec.Struct, frozen=True):
    """The base class of all messages. On the socket, the class name identifies a message's type."""


class Handshake(Message, frozen=True, kw_only=True):
    """The first message to a child."""

    modules: tuple[str, ...]  # the modules that the worker imports
    arguments: tuple[str, ...]  # the worker's sys.argv, which an application may read
    settings: dict[str, Any]  # the worker's settings that also apply in the child
    is_reachable: bool  # True if another process can reach the worker's broker
    has_lifespan: bool  # True if the worker has a lifespan, whose state does not exist in the child
    log_level: int  # the level of the root logger
    hooks: tuple[str, ...] = ()  # the `CHILD_HOOKS` that the worker has


class Import(Message, frozen=True):
    """Asks the child to import a job's module. For the worker's main module, `main` is the module's real name or its file's path."""

    module: str
    main: str | None = None


class Run(Message, frozen=True):
    """Asks the child to run a job. `module` is the module that declares it."""

    lease: Lease
    module: str


class Stop(Message, frozen=True):
    """Asks the child to stop its run. `why` is the reason, as in `HeldLease.why_stopped`. Ignored if the child has no run."""

    why: str


class Ready(Message, frozen=True):
    """Reports that the child has imported every module that it could. `memory` is the child's memory use in bytes."""

    memory: int


class Reported(Message, frozen=True):
    fraction: float
    note: str


class Completing(Message, frozen=True):
    """Announces that a transaction will complete the run, so the lease may end before the run does."""


class Finished(Message, frozen=True):
    """Reports the run's verdict. `memory` is in bytes. The child is used again only if its imports and lifespan are intact (`is_whole`)."""

    verdict: Verdict
    memory: int
    is_whole: bool


class CallRefused(Message, frozen=True):
    """Reports why the child could not set itself up, or did not find the job. A new child may succeed."""

    why: str
    traceback: str


_KINDS: Final = (Handshake, Import, Run, Stop, Ready, Reported, Completing, Finished, CallRefused)
_MESSAGES: Final = {message.__name__: message for message in _KINDS}


def pack(message: Message) -> bytes:
    """Return the message as bytes to be sent."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    if isinstance(message, Finished):
        fields["verdict"] = _packed_verdict(message.verdict)
    # an error's message may contain half of a surrogate pair, which UTF-8 cannot express
    body = msgpack.packb([type(message).__name__, msgspec.to_builtins(fields, builtin_types=(bytes,))], unicode_errors="surrogatepass")
    assert body is not None
    return _LENGTH.pack(len(body)) + bytes(body)


def _packed_verdict(verdict: Verdict) -> list[Any]:
    if isinstance(verdict, Completed):
        return [Completed.__name__, _packed_verdict(verdict.otherwise)]
    return [type(verdict).__name__, verdict]


def _verdict(name: str, fields: Any) -> Verdict:
    if name == Completed.__name__:
        return Completed(_verdict(*fields))
    verdict: Verdict = msgspec.convert(fields, _VERDICTS[name])
    return verdict


class Unpacker:
    """Assembles messages of at most `most` bytes from the received bytes, or raises ProtocolError."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._received = bytearray()

    def feed(self, received: bytes) -> Iterator[Message]:
        self._received += received
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > self._most:
                raise ProtocolError(f"a message of {length:,} bytes, more than {self._most:,}")
            end = _LENGTH.size + length
            if len(self._received) < end:
                return
            body = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            yield _read(body)


def _read(body: bytes) -> Message:
    try:
        kind, fields = msgpack.unpackb(body, unicode_errors="surrogatepass")
        if kind == Finished.__name__:
            fields["verdict"] = _verdict(*fields["verdict"])
            return Finished(**fields)
        message: Message = msgspec.convert(fields, _MESSAGES[kind])
        return message
    except Exception as error:
        raise ProtocolError(f"a message that cannot be read ({type(error).__name__}: {error})") from error


class ChildFailed(TaskflowError):
    """A child process did not start, did not find the job, or died. The job is retried, whatever `retry_on` says, if attempts are left."""

    __module__ = "taskflow"  # the name that a job's record shows


class CannotStart(ChildFailed):
    """The system has no descriptors, processes or threads left. The shortage may pass, and no application code has run."""

    __module__ = "taskflow"


class ChildDied(ChildFailed):
    """The child broke the protocol and was killed, or it died, for example because of a segfault, `os._exit()` or an out-of-memory kill."""

    __module__ = "taskflow"
