"""A job's types are compiled before anything has loaded `zoneinfo`, and zones are sent all the same. The tests use separate processes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from types import ModuleType
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from taskflow.model.codec import decode_value, encode_value
from taskflow.model.errors import EncodeError
from tests.unit.codec.exactly import codec_of

pytestmark = pytest.mark.slow

COMPILED_FIRST: Final = """
import sys
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any
from taskflow.model.codec import FunctionCodec, decode_value, encode_value

@dataclass
class Point:
    x: int

def codec_of(annotation):
    def job(value): ...
    job.__annotations__ = {"value": annotation}
    codec = FunctionCodec(job, name="job")
    codec.resolve()
    return codec

ANY, UNION, MOMENT = codec_of(Any | Point), codec_of(Any | Point | None), codec_of(datetime)
assert "zoneinfo" not in sys.modules
"""

WRITES: Final = """
from zoneinfo import ZoneInfo
PARIS = ZoneInfo("Europe/Paris")
"""


def ends_well(script: str) -> None:
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("ANY", "PARIS"),
        ("UNION", "PARIS"),
        ("UNION", "[PARIS]"),
        ("ANY", "{'zone': PARIS}"),
        ("MOMENT", "datetime(2026, 7, 1, tzinfo=PARIS)"),
    ],
)
def test_codecs_compiled_before_zoneinfo_was_loaded_write_zones(codec: str, value: str) -> None:
    ends_well(
        f"{COMPILED_FIRST}{WRITES}value = {value}\n"
        f"(read,), _ = {codec}.decode_arguments({codec}.encode_arguments((value,), {{}}))\n"
        "assert read == value, read"
    )


def test_decoding_a_zone_loads_zoneinfo() -> None:
    sent = encode_value(ZoneInfo("Europe/Paris"))
    ends_well(f"{COMPILED_FIRST}zone = decode_value({sent!r})\nassert zone.key == 'Europe/Paris'")


def test_beside_a_thread_that_is_about_to_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module exists before it has any contents."""
    monkeypatch.setitem(sys.modules, "zoneinfo", ModuleType("zoneinfo"))
    now = datetime.now(UTC)
    assert decode_value(encode_value([now, now.timetz()])) == [now, now.timetz()]
    with pytest.raises(EncodeError):
        encode_value(object())
    codec = codec_of(datetime | None)
    assert codec.decode_arguments(codec.encode_arguments((now,), {})) == ((now,), {})
