"""Encodes values as payloads and decodes them, according to a shape and within limits. Misfits become public errors here."""

from __future__ import annotations

from typing import Any

import msgspec

from taskflow.model.codec.limits import Limits, check_items, check_size
from taskflow.model.codec.misfit import Misfit, raised, shown_cause, too_deep
from taskflow.model.codec.payload import HEADER_SIZE, Content, open_payload, seal
from taskflow.model.codec.shape import Shape
from taskflow.model.codec.stability import check_stable
from taskflow.model.codec.untyped import ANY, NAMED_READERS, without_unknown_names
from taskflow.model.codec.wire import NAMED, marker, pack, unpack, unpack_json
from taskflow.model.errors import DecodeError, EncodeError, UnknownType

DEFAULT_LIMITS = Limits()
_NAMED = pack(marker(NAMED))


def encode(
    shape: Shape, value: Any, limits: Limits, *, runs_code: bool = False, where: str = "", annotated: str = "the parameter (or field)"
) -> bytes:
    """Encode a value as a payload.

    Set `runs_code` if the shape's classes check or convert their fields: then the payload is also decoded and encoded again, and must not
    change. The same applies to a payload that contains a registered type. `where` ends every message; `annotated` names what the user
    should annotate. Raises EncodeError, or TooLarge beyond the limits.
    """
    try:
        payload = seal(pack(shape.write(value, limits.depth)))
        if len(payload) > limits.unchecked_size:
            check_size(len(payload), limits)
            check_items(payload[HEADER_SIZE:], Content.MSGPACK, limits)
        if runs_code or (NAMED_READERS and _NAMED in payload):
            check_stable(shape, payload[HEADER_SIZE:], limits.depth)
    except Misfit as misfit:
        raise misfit.as_encode_error(where, annotated) from misfit.__cause__
    except RecursionError:
        raise too_deep().as_encode_error(where) from None
    except Exception as error:  # from the class's code: a property, or a mapping's items()
        raise EncodeError(f"cannot be encoded: {raised(error)}{where}") from error
    return payload


def decode(shape: Shape, payload: bytes, limits: Limits, *, where: str = "") -> Any:
    """Decode a payload. Raises only DecodeError or a subclass (NewerFormat, UnknownArgument, MissingArgument), whatever the bytes are."""
    content, body = open_payload(payload)
    try:
        if len(payload) > limits.unchecked_size:
            check_size(len(payload), limits)
            check_items(body, content, limits)
        if content is Content.JSON:
            return shape.read_json(unpack_json(body), limits.depth)
        return shape.read(unpack(body), limits.depth)
    except Misfit as misfit:
        raise misfit.as_decode_error(where) from shown_cause(misfit.__cause__)
    except RecursionError:
        raise too_deep().as_decode_error(where) from None
    except Exception as error:  # from the class's code, or for a number that its type cannot hold
        raise DecodeError(f"cannot be decoded: {raised(error)}{where}") from shown_cause(error)


def encode_value(value: object, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Encode a value without an annotation. Only self-describing types are allowed. Raises EncodeError, or TooLarge beyond the limits."""
    return encode(ANY, value, limits)


def decode_value(payload: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode a payload without an annotation. Raises DecodeError if the payload is invalid or exceeds a limit.

    If it was encoded with an annotation, instances of classes are returned as dicts keyed by field name, and Enum members as their values.
    Instances of types that are not registered here are returned as the value that was made of them.
    """
    return decode_plain(ANY, payload, limits)


def decode_plain(shape: Shape, payload: bytes, limits: Limits) -> Any:
    """Decode a payload with a shape whose values have no annotations. Instances of types that are not registered here are returned as
    the value that was made of them."""
    try:
        return decode(shape, payload, limits)
    except UnknownType:
        known = msgspec.structs.replace(shape, read=lambda wire, levels: shape.read(without_unknown_names(wire), levels))
        return decode(known, payload, limits)
