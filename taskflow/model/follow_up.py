"""The call that `on_failure` names: how it is stored with a job, and the envelope that is sent when the job fails."""

from __future__ import annotations

from typing import Final

import msgspec

from taskflow.model.envelope import Envelope, check_envelope
from taskflow.model.ids import id_text

CAUSED_BY: Final = "tf-caused-by"
"""The header of a follow-up that holds the id of the job that failed."""

MAX_FOLLOW_UP: Final = 32_768
"""The maximum size in bytes of a stored call, which travels with its job. It includes the `on_failure` of the call itself."""

_NO_ID: Final = bytes(16)
_PLAIN: Final = Envelope(id=b"", job="", payload=b"")
_DECODER: Final = msgspec.msgpack.Decoder(Envelope)


def pack_follow_up(envelope: Envelope) -> bytes:
    """Pack a call without its id. Raises ValueError if it is too large, or if its headers leave no room for `CAUSED_BY`."""
    caused = _caused_by(envelope, _NO_ID, _NO_ID)
    try:
        check_envelope(caused)
    except ValueError as error:
        raise ValueError(f"the call of {envelope.job}: {error}, of which {CAUSED_BY} takes 48") from None
    given = {name: getattr(envelope, name) for name in Envelope.__struct_fields__}
    packed = msgspec.msgpack.encode({name: value for name, value in given.items() if value != getattr(_PLAIN, name)} | {"id": b""})
    if len(packed) > MAX_FOLLOW_UP:
        raise ValueError(
            f"the call of {envelope.job} has {len(packed):,} bytes with its arguments and options, expected at most {MAX_FOLLOW_UP:,}: "
            "pass a reference to large data, such as an id"
        )
    return packed


def follow_up_of(packed: bytes, new_id: bytes, cause: bytes) -> Envelope:
    """Return the envelope to send. `cause` is the id of the job that failed. Raises ValueError if the call cannot be read."""
    try:
        return check_envelope(_caused_by(_DECODER.decode(packed), new_id, cause))
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def job_of(packed: bytes) -> str:
    """Return the name of the job that is called. Raises ValueError if the call cannot be read."""
    return follow_up_of(packed, _NO_ID, _NO_ID).job


def _caused_by(envelope: Envelope, new_id: bytes, cause: bytes) -> Envelope:
    return msgspec.structs.replace(envelope, id=new_id, headers={**envelope.headers, CAUSED_BY: id_text(cause)})
