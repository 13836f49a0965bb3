"""The envelope of every argument list and every result: four bytes, then the body.

====== ======= ==================================================================================================
offset name    meaning
====== ======= ==================================================================================================
0      version 1
1      flags   bit 0 signed, bit 1 encrypted, bit 2 compressed: reserved, none is written yet; bits 3 to 7 are zero
2      key id  which key signed or encrypted; 0 while no flag says so
3      content 1 msgpack (`docs/reference/wire-format.md`), 2 JSON decoded by annotation
4      body    to the end
====== ======= ==================================================================================================

A version, flag, key or content that is not known here was written by a newer taskflow: `NewerFormat`, so that the job waits for
a worker that knows it. There is no length and no checksum: the store keeps both.
"""

from __future__ import annotations

from enum import IntEnum

from taskflow.model.errors import DecodeError, NewerFormat

VERSION = 1
HEADER_SIZE = 4


class Content(IntEnum):
    """The encoding of the body."""

    MSGPACK = 1
    JSON = 2


_MSGPACK = Content.MSGPACK
_MSGPACK_HEADER = bytes((VERSION, 0, 0, Content.MSGPACK))
_JSON_HEADER = bytes((VERSION, 0, 0, Content.JSON))


def seal(body: bytes) -> bytes:
    """Wrap a msgpack body."""
    return _MSGPACK_HEADER + body


def seal_json(body: bytes) -> bytes:
    """Wrap a JSON body (an object by parameter name, in UTF-8), as an SQL trigger makes it."""
    return _JSON_HEADER + body


def open_payload(payload: bytes) -> tuple[Content, bytes]:
    """Return the content's encoding and the body.

    Raises NewerFormat for a payload of a newer taskflow, and DecodeError for bytes that are no payload.
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
