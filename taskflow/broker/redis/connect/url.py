"""Reads a server's address and options from a broker URL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import SplitResult, unquote

from taskflow.broker.redis.connect.server import RedisTarget
from taskflow.model.errors import BrokerUrlError
from taskflow.model.wording import IN_PASSWORDS


def server_of(parts: SplitResult, options: Mapping[str, str]) -> RedisTarget:
    """Return the server that a URL such as ``redis://user:password@host:6379/0?durability=fsync``
    describes. Raises BrokerUrlError if an option is invalid; the message never shows a password."""
    if parts.scheme != "rediss" and (tls := next((name for name in options if name.startswith("tls_")), None)):
        raise BrokerUrlError(f"broker URL has {tls}= without TLS: write rediss://")
    return RedisTarget(
        host=parts.hostname or "localhost",
        port=_port(parts),
        db=_db(parts.path),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=parts.scheme == "rediss",
        ca_file=options.get("tls_ca"),
        cert_file=options.get("tls_cert"),
        key_file=options.get("tls_key"),
        check_certificate=_choice(options, "tls_check", ("0", "1"), "1") == "1",
        fsync=_choice(options, "durability", ("server", "fsync"), "server") == "fsync",
        evicting=_choice(options, "evicting", ("0", "1"), "0") == "1",
    )


def _port(parts: SplitResult) -> int:
    with suppress(ValueError):  # its message may quote a part of the password, so it is not kept as the cause
        return 6379 if parts.port is None else parts.port
    raise BrokerUrlError(f"broker URL has a port that is not a number up to 65535; {IN_PASSWORDS}")


def _db(path: str) -> int:
    number = path.strip("/")
    if number and not number.isdecimal():
        raise BrokerUrlError(f"broker URL has a database that is not a number, as in redis://localhost:6379/0; {IN_PASSWORDS}")
    return int(number or 0)


def _choice(options: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in allowed:
        raise BrokerUrlError(f"broker URL has {name}={value!r}: expected {' or '.join(allowed)}")
    return value
