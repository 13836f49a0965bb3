"""Encodes arguments and results as bytes, without loss and within limits. Start reading at `FunctionCodec`."""

from taskflow.model.codec.function import FunctionCodec, decode_by_name, encode_by_name
from taskflow.model.codec.payload import Content, Limits, decode_value, encode_value, open_payload, seal_json

__all__ = [
    "Content",
    "FunctionCodec",
    "Limits",
    "decode_by_name",
    "decode_value",
    "encode_by_name",
    "encode_value",
    "open_payload",
    "seal_json",
]
