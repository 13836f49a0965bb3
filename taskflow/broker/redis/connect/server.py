"""Where a server is and how it is spoken to: the driver's defaults that would hurt are set on purpose here."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any, Final

import msgspec
import redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from taskflow.model.errors import BrokerRefused

ANSWER_WITHIN: Final = 3.0
"""Seconds for one command. Less than an application's patience with an enqueue (5 s), so that it can be sent once more."""

CONNECT_WITHIN: Final = 2.0


# A connection that a firewall has forgotten is noticed within a minute, also when it lies idle.
_KEEPALIVE: Final = {
    getattr(socket, name): seconds
    for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def _about() -> dict[str, Any]:
    """What CLIENT LIST says of a connection. The driver would read its version from its distribution's metadata, for each connection anew,
    with the parser of mails: some milliseconds in which the loop stands still."""
    try:
        from redis.driver_info import DriverInfo  # of the driver's newer versions
    except ImportError:
        return {"lib_name": "redis-py", "lib_version": redis.__version__}
    return {"driver_info": DriverInfo(lib_version=redis.__version__)}


_ABOUT: Final = _about()


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server. `password` is never shown.

    `path`      of a unix socket, instead of host and port
    `tls`       speak TLS; `ca_file`, `cert_file`, `key_file` as paths; `check_hostname` and the certificate's chain unless told otherwise
    `fsync`     every enqueue waits until the server has it on its disk (WAITAOF)
    `evicting`  start although the server evicts keys when its memory is full, and with them jobs
    """

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = None
    path: str | None = None
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    check_certificate: bool = True
    fsync: bool = False
    evicting: bool = False

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the struct's own has the password too
        return [("at", str(self))]

    def __repr__(self) -> str:
        user = f" as {self.username!r}" if self.password else ""  # a name alone is more often a password in the wrong place
        return f"<Server {self} {self.db}{user}>"

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}{' over TLS' if self.tls else ''}"

    def connection(self) -> AbstractConnection:
        """Not connected yet.

        No retries: the driver would send a command again by itself, ten times, and a script that took effect would run twice; whoever
        asks sends again, and knows that he does. No timeouts: they are set around a command as a whole. RESP2: the scripts' replies are
        strings, numbers and arrays, which it parses fastest.
        """
        common: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_WITHIN,
            "health_check_interval": 0,
            "protocol": 2,
            **_ABOUT,
        }
        if self.path is not None:
            return UnixDomainSocketConnection(path=self.path, **common)
        place: dict[str, Any] = {"host": self.host, "port": self.port, "socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
        if not self.tls:
            return Connection(**place, **common)
        self._check_files()
        return SSLConnection(
            **place,
            **common,
            ssl_ca_certs=self.ca_file,
            ssl_certfile=self.cert_file,
            ssl_keyfile=self.key_file,
            ssl_cert_reqs="required" if self.check_certificate else "none",
            ssl_check_hostname=self.check_certificate,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
        )

    def _check_files(self) -> None:
        """The driver would say that it is the server that is not there."""
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None and not os.path.isfile(file):
                raise BrokerRefused(f"no TLS with Redis at {self.host}:{self.port}: the broker URL names {file}, which is no file")
