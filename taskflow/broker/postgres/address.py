"""From a broker URL to a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, unquote

from taskflow.broker.postgres.server import Server
from taskflow.broker.words import IN_PASSWORDS
from taskflow.model.errors import BrokerUrlError

_TLS: Final = ("disable", "prefer", "require", "verify-ca", "verify-full")


def server_of(parts: SplitResult, options: Mapping[str, str]) -> Server:
    """The database that ``postgresql://user:password@host:5432/app?tls=require`` names. BrokerUrlError, which tells no password."""
    tls = options.get("tls", "verify-full" if "tls_ca" in options else "prefer")
    if tls not in _TLS:
        raise BrokerUrlError(f"broker URL has tls={tls!r}: it is one of {', '.join(_TLS)}")
    pooled = options.get("pooled", "0")
    if pooled not in ("0", "1"):
        raise BrokerUrlError(f"broker URL has pooled={pooled!r}: it is 0 or 1")
    listen_host, listen_port = _listen(options.get("listen"))
    return Server(
        host=parts.hostname or "localhost",
        port=_port(parts),
        database=unquote(parts.path.strip("/")) or None,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=tls,
        ca_file=options.get("tls_ca"),
        listen_host=listen_host,
        listen_port=listen_port,
        is_pooled=pooled == "1",
    )


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:  # its message repeats what stands there: a part of the password, where that has a '/' or a '?'
        raise BrokerUrlError(f"broker URL has a port that is no number up to 65535; {IN_PASSWORDS}") from None
    return 5432 if port is None else port


def _listen(place: str | None) -> tuple[str | None, int | None]:
    if place is None:
        return None, None
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise BrokerUrlError(f"broker URL has listen={place!r}: it is a host and a port, as in listen=db.internal:5432")
    return host, int(port)
