"""Adds the header of four bytes to the body of a payload, and takes it off. `docs/reference/wire-format.md` describes both.

An unknown version, flag, key or content means that a newer taskflow wrote the payload. Opening it raises `NewerFormat`, and the job waits
for a newer worker.
"""

from __future__ import annotations

from enum import IntEnum

from taskflow.model.errors import DecodeError, NewerFormat

VERSION = 1
HEADER_SIZE = 4


class Content(IntEnum):
    """The encoding of a payload's body."""

    MSGPACK = 1
    JSON = 2


_MSGPACK = Content.MSGPACK
_MSGPACK_HEADER = bytes((VERSION, 0, 0, Content.MSGPACK))
_JSON_HEADER = bytes((VERSION, 0, 0, Content.JSON))


def seal(body: bytes) -> bytes:
    """Add the header to a msgpack body."""
    return _MSGPACK_HEADER + body


def seal_json(body: bytes) -> bytes:
    """Add the header to a JSON body: an object in UTF-8 that maps argument names to values. SQL triggers send jobs in this form."""
    return _JSON_HEADER + body


def open_payload(payload: bytes) -> tuple[Content, bytes]:
    """Return the encoding of the body, and the body itself.

    Raises NewerFormat for a payload that a newer taskflow wrote, and DecodeError for bytes that are not a payload.
    """
    if payload.startswith(_MSGPACK_HEADER):
        return _MSGPACK, payload[HEADER_SIZE:]
    if payload.startswith(_JSON_HEADER):
        return Content.JSON, payload[HEADER_SIZE:]
    raise _refusal(payload[:HEADER_SIZE])


def _refusal(header: bytes) -> DecodeError:
    if header and header[0] != VERSION:
        return NewerFormat(f"payload version {header[0]} is not known; this taskflow reads version {VERSION}")
    if len(header) < HEADER_SIZE:
        lost = "" if header else ": it is gone, or was none"
        return DecodeError(f"a payload has at least {HEADER_SIZE} bytes, this one has {len(header)}{lost}")
    _, flags, key_id, content = header
    return NewerFormat(f"payload with flags {flags:#04x}, key {key_id}, content {content} is not known; a newer taskflow wrote it")
