"""Reads a server's address and options from a broker URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, unquote

from taskflow.broker.postgres.connect.server import DEFAULT_PORT, Address, PostgresTarget
from taskflow.model.errors import BrokerUrlError
from taskflow.model.wording import IN_PASSWORDS

_HIGHEST_PORT: Final = 65535
_HOST: Final = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[0-9]{0,5}))?")
_TLS: Final = ("disable", "prefer", "require", "verify-ca", "verify-full")


def server_of(parts: SplitResult, options: Mapping[str, str]) -> PostgresTarget:
    """Return the database that a URL such as ``postgresql://user:password@host:5432/app?tls=require``
    describes. Raises BrokerUrlError if the URL is invalid; the message never shows a password."""
    tls = options.get("tls", "verify-full" if "tls_ca" in options else "prefer")
    if tls not in _TLS:
        raise BrokerUrlError(f"broker URL has tls={tls!r}: expected one of {', '.join(_TLS)}")
    if tls == "verify-ca" and "tls_ca" not in options:
        raise BrokerUrlError(
            "broker URL has tls=verify-ca without tls_ca=, a file of authorities; to use the system's, write tls=verify-full"
        )
    pooled = options.get("pooled", "0")
    if pooled not in ("0", "1"):
        raise BrokerUrlError(f"broker URL has pooled={pooled!r}: expected 0 or 1")
    if "@" in parts.path:  # the URL parser may have taken a part of the password for an address
        raise BrokerUrlError(f"broker URL has an '@' after its address; {IN_PASSWORDS}")
    first, *others = _places(parts.netloc.rpartition("@")[2])
    return PostgresTarget(
        host=first.host,
        port=first.port,
        others=tuple(others),
        database=unquote(parts.path.strip("/")) or None,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=tls,
        ca_file=options.get("tls_ca"),
        listen_at=_listen(options["listen"]) if "listen" in options else (),
        is_pooled=pooled == "1",
        owner=options.get("owner"),
    )


def _places(text: str) -> list[Address]:
    """Parse addresses such as ``db1:5432,db2`` or ``[::1]:5432``. Error messages do
    not quote them, because they may be part of a password that contains a '/'."""
    hosts = [_split(host) for host in text.split(",")]
    if len(hosts) > 1 and not all(host for host, _ in hosts):
        raise BrokerUrlError(f"broker URL has an empty host in its list: expected hosts such as db1:5432,db2:5432; {IN_PASSWORDS}")
    return [Address(host or "localhost", _port(port) if port else DEFAULT_PORT) for host, port in hosts]


def _split(text: str) -> tuple[str, str]:
    """Return the host and the port as written. Either may be empty."""
    found = _HOST.fullmatch(unquote(text))
    if found is None:
        raise BrokerUrlError(f"broker URL has a malformed host, or a port that is not a number up to 65535; {IN_PASSWORDS}")
    return found["bracketed"] or found["plain"] or "", found["port"] or ""


def _port(text: str) -> int:
    if int(text) > _HIGHEST_PORT:
        raise BrokerUrlError(f"broker URL has a port that is not a number up to 65535; {IN_PASSWORDS}")
    return int(text)


def _listen(text: str) -> tuple[Address, ...]:
    found = [_HOST.fullmatch(host) for host in text.split(",")]
    places = [(host["bracketed"] or host["plain"], host["port"]) for host in found if host is not None]
    if len(places) < len(found) or not all(host and port and int(port) <= _HIGHEST_PORT for host, port in places):
        raise BrokerUrlError(f"broker URL has listen={text!r}: expected one or more hosts with ports, as in listen=db.internal:5432")
    return tuple(Address(host, int(port)) for host, port in places)
