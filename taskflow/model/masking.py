"""Prepares decoded values for display: hides secrets, shortens long values, and converts the rest to JSON types."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Set
from datetime import date, time
from itertools import islice, pairwise
from typing import Any, Final

import msgspec

from taskflow.model.printable import shown

HIDDEN: Final = "[hidden]"

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS: Final = frozenset(
    (
        *("auth", "authentication", "authorization", "bearer", "cred", "csrf", "cvc", "cvv", "dsn", "jwt", "oauth"),
        *("otp", "pass", "pin", "pw", "pwd", "sid", "signature", "totp", "xsrf"),
    )
)
_SECRET_ENDS: Final = ("password", "passwd", "passphrase", "passcode", "secret", "token", "credential", "cookie")
_SECRET_PAIRS: Final = frozenset(
    ("api key", "access key", "private key", "secret key", "signing key", "encryption key", "session key", "session id", "card number")
)
_SECRET_JOINED: Final = frozenset(pair.replace(" ", "") for pair in _SECRET_PAIRS)

# A password that should have been percent-encoded may contain "/" or spaces. A number before one of these is a port, unless "@" follows
# before the next space. No match goes beyond the next "://", so matching takes linear time.
_PASSWORD_IN_URL: Final = re.compile(r"(?<=://)([^\s/?#:@]*):(?:(?:(?!://)\S)*(?=@)|(?!\d{1,5}(?:[/?#\s]|$))\S(?:(?!://).)*(?=@))")
_PARAMETER_IN_URL: Final = re.compile(r"(?<=[?&#;])([^\s=?&#;]{1,64})=([^\s&#;\"'<>]+)")


class DisplayLimits(msgspec.Struct, frozen=True):
    """How much of a value is shown: characters of a text, items of a container, and levels of nested containers."""

    characters: int
    items: int
    levels: int


def is_secret(name: str) -> bool:
    """Return True if a value with this name is probably a secret, such as `password`, `api_key` or `X-Auth-Token`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if any(not _SECRET_WORDS.isdisjoint((word, word.removesuffix("s"))) or word in _SECRET_JOINED for word in words):
        return True
    if any(word.removesuffix("s").endswith(_SECRET_ENDS) for word in words):
        return True
    return any(" ".join(pair) in _SECRET_PAIRS for pair in pairwise(words))


def masked_text(text: str) -> str:
    """Hide passwords in URLs, and the values of URL parameters whose names suggest a secret."""
    text = _PASSWORD_IN_URL.sub(rf"\1:{HIDDEN}", text) if "://" in text else text
    return _PARAMETER_IN_URL.sub(_masked_parameter, text)


def _masked_parameter(found: re.Match[str]) -> str:
    name = found[1]
    return f"{name}={HIDDEN}" if is_secret(name) else found[0]


def masked_value(value: object, secrets: Collection[str], limits: DisplayLimits) -> Any:
    """Convert a decoded value to JSON types: sets and tuples become lists; instants, decimals and keys of dicts become text.

    Hides passwords in URLs, and values whose name is in `secrets` or looks secret (`is_secret`). Leaves out anything beyond `limits`.
    """
    if value is None or isinstance(value, bool | float):
        return _number(value)
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else shown(value)
    if isinstance(value, str):
        return cut(masked_text(value), limits.characters)
    if isinstance(value, bytes | bytearray):
        size, hexadecimal = len(value), bytes(value[: limits.characters // 2]).hex()
        return f"<{size:,} bytes: {hexadecimal}{'...' if 2 * size > limits.characters else ''}>" if size else "<0 bytes>"
    if isinstance(value, Mapping | list | tuple | Set):
        return _container(value, secrets, limits)
    return cut(_text(value), limits.characters)


def masked_map(values: Mapping[Any, object], secrets: Collection[str], limits: DisplayLimits) -> dict[str, Any]:
    """Convert a map of values by name as `masked_value` does."""
    return dict(_pairs(values, secrets, limits))


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def _container(value: Any, secrets: Collection[str], limits: DisplayLimits) -> Any:
    if not limits.levels:
        return f"<{type(value).__name__} with {len(value):,} items>"
    inside = msgspec.structs.replace(limits, levels=limits.levels - 1)
    if isinstance(value, Mapping):
        return masked_map(value, secrets, inside)
    items = [masked_value(each, secrets, inside) for each in islice(_ordered(value), limits.items)]
    return items if len(items) == len(value) else [*items, f"... ({len(value):,} items)"]


def _pairs(values: Mapping[Any, object], secrets: Collection[str], limits: DisplayLimits) -> Iterable[tuple[str, Any]]:
    for key, value in islice(values.items(), limits.items):
        name = key if isinstance(key, str) else _text(key)
        is_hidden = (name in secrets or is_secret(name)) and value is not None and not isinstance(value, bool)
        yield cut(name, limits.characters), HIDDEN if is_hidden else masked_value(value, secrets, limits)
    if len(values) > limits.items:
        yield "...", f"({len(values):,} items)"


def _ordered(value: Any) -> Iterable[Any]:
    """Return the items. The items of a set are sorted by their text, so that equal sets look alike."""
    return sorted(value, key=shown) if isinstance(value, Set) else value


def _number(value: float | None) -> Any:
    return value if value is None or value - value == 0 else str(value)  # JSON has no infinities and no NaN


def _text(value: object) -> str:
    try:
        return value.isoformat() if isinstance(value, date | time) else str(value)
    except Exception:  # the value may be of an application's class
        return shown(value)
