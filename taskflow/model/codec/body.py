"""Between values and payloads, by a shape and within limits; here misfits become errors."""

from __future__ import annotations

from typing import Any

from taskflow.model.codec.bounds import check_items, check_size
from taskflow.model.codec.limits import Limits
from taskflow.model.codec.misfit import Misfit, too_deep
from taskflow.model.codec.payload import HEADER_SIZE, Content, open_payload, seal
from taskflow.model.codec.shape import Shape
from taskflow.model.codec.untyped import ANY
from taskflow.model.codec.wire import pack, unpack, unpack_json
from taskflow.model.errors import DecodeError

DEFAULT_LIMITS = Limits()


def encode(shape: Shape, value: Any, limits: Limits, *, must_decode: bool = False, where: str = "") -> bytes:
    """The payload of a value.

    `must_decode` has it decoded too, for shapes whose classes may refuse what they once were; `where` ends every message. Raises
    EncodeError, TooLarge beyond the limits.
    """
    try:
        payload = seal(pack(shape.write(value, limits.depth)))
        if len(payload) > limits.fewest:
            check_size(len(payload), limits)
            check_items(payload[HEADER_SIZE:], Content.MSGPACK, limits)
        if must_decode:
            shape.read(unpack(payload[HEADER_SIZE:]), limits.depth)
    except Misfit as misfit:
        raise misfit.as_encode_error(where) from misfit.__cause__
    except RecursionError:
        raise too_deep().as_encode_error(where) from None
    return payload


def decode(shape: Shape, payload: bytes, limits: Limits, *, where: str = "") -> Any:
    """The value of a payload; DecodeError (NewerFormat, UnknownArgument, MissingArgument) and no other error, whatever the bytes."""
    content, body = open_payload(payload)
    try:
        if len(payload) > limits.fewest:
            check_size(len(payload), limits)
            check_items(body, content, limits)
        if content is Content.JSON:
            return shape.read_json(unpack_json(body), limits.depth)
        return shape.read(unpack(body), limits.depth)
    except Misfit as misfit:
        raise misfit.as_decode_error(where) from misfit.__cause__
    except RecursionError:
        raise too_deep().as_decode_error(where) from None
    except Exception as error:  # a class's own code, or a number beyond what its type can hold
        raise DecodeError(f"cannot be decoded: {type(error).__name__}: {error}{where}") from error


def encode_value(value: object, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The payload of a value without an annotation: self-describing types, exactly. Raises EncodeError, TooLarge beyond the limits."""
    return encode(ANY, value, limits)


def decode_value(payload: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """What a payload holds, without an annotation; raises DecodeError.

    Of what was written by annotation, instances of classes come as dicts by field name, Enum members as their values, all else exactly.
    """
    return decode(ANY, payload, limits)
