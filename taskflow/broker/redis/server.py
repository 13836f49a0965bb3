"""Describes a server: its address and options, read from a broker URL, and what INFO reports. Checks whether jobs are safe on it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import SplitResult, unquote

import msgspec
import redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from taskflow.broker.admin import Finding
from taskflow.broker.redis.errors import full
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable, BrokerUrlError
from taskflow.model.printable import MAX_WHOLE, whole
from taskflow.model.wording import IN_PASSWORDS

ANSWER_TIMEOUT: Final = 3.0
"""Seconds that one command may take. This leaves time to send it again within the default `enqueue_timeout` (5 s)."""

CONNECT_TIMEOUT: Final = 2.0


# Detects within a minute that a firewall has dropped a connection, even an idle one.
_KEEPALIVE: Final = {
    getattr(socket, name): seconds
    for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def _about() -> dict[str, Any]:
    """Return the driver's name and version for CLIENT LIST. Otherwise the driver would parse its
    distribution's metadata for each connection, which would block the event loop for a few milliseconds."""
    try:
        from redis.driver_info import DriverInfo  # only newer versions of the driver have it
    except ImportError:
        return {"lib_name": "redis-py", "lib_version": redis.__version__}
    return {"driver_info": DriverInfo(lib_version=redis.__version__)}


_ABOUT: Final = _about()


class RedisTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a server, and how to connect to it. `password` is never shown.

    `tls`       True to use TLS; `ca_file`, `cert_file`, `key_file` are paths; `check_certificate=False` accepts any certificate
    `fsync`     True if every enqueue waits until the server has written the jobs to disk (WAITAOF)
    `evicting`  True to accept a server that evicts keys, and thus jobs, when its memory is full
    """

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    check_certificate: bool = True
    fsync: bool = False
    evicting: bool = False

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the struct's default repr would show the password
        return [("at", str(self))]

    def __repr__(self) -> str:
        user = f" as {self.username!r}" if self.password else ""  # a user without a password is often a password in the wrong place
        return f"<RedisTarget {self} {self.db}{user}>"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}{' over TLS' if self.tls else ''}"

    def connection(self) -> AbstractConnection:
        """Return a connection that is not open yet. Raises BrokerRefused if a TLS file is missing.

        The driver must not retry: it would resend a command up to ten times, so a script could run twice. The pool resends where that
        is safe. There is no socket timeout, because the pool sets a time limit for each command as a whole. RESP2 is used because
        script replies parse fastest in it.
        """
        common: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "health_check_interval": 0,
            "protocol": 2,
            **_ABOUT,
        }
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
        """Raise BrokerRefused if a TLS file is missing, because the driver's error would suggest that the server is unavailable."""
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None and not os.path.isfile(file):
                raise BrokerRefused(f"no TLS with Redis at {self.host}:{self.port}: the broker URL names {file}, which is not a file")


# --- from a URL ---------------------------------------------------------------------------------------------------


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
    number = whole(path.strip("/") or "0")
    if number is None or number == MAX_WHOLE:
        raise BrokerUrlError(f"broker URL has a database that is not a number: write it as in redis://localhost:6379/0; {IN_PASSWORDS}")
    return number


def _choice(options: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in allowed:
        raise BrokerUrlError(f"broker URL has {name}={value!r}: expected {' or '.join(allowed)}")
    return value


# --- what INFO reports --------------------------------------------------------------------------------------------

OLDEST: Final = (7, 2)
"""The oldest suitable version: Redis 7.2, or Valkey, which reports itself as compatible with it. Older servers lack WAITAOF."""


_LITTLE_ROOM: Final = 0.9
"""The fraction of maxmemory in use above which `taskflow doctor` reports a problem."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from a server's INFO. `name` is its product and version, `version` the compatible Redis version; `maxmemory` 0 is no limit."""

    name: str
    version: tuple[int, ...]
    role: str
    policy: str
    maxmemory: int
    used_memory: int
    has_aof: bool
    replicas: int
    is_cluster: bool

    @classmethod
    def of(cls, info: bytes) -> ServerInfo:
        rows = (line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line)
        reported = {name: value for name, _, value in rows}
        version = reported.get("redis_version", "0")
        valkey = reported.get("valkey_version")
        return cls(
            name=f"Valkey {valkey}" if valkey else f"Redis {version}",
            version=tuple(int(part) for part in version.split(".") if part.isdigit()),
            role=reported.get("role", "master"),
            policy=reported.get("maxmemory_policy", "noeviction"),
            maxmemory=int(reported.get("maxmemory", 0)),
            used_memory=int(reported.get("used_memory", 0)),
            has_aof=reported.get("aof_enabled") == "1",
            replicas=int(reported.get("connected_slaves", 0)),
            is_cluster=reported.get("cluster_enabled") == "1",
        )

    def check(self, place: str, *, may_evict: bool) -> None:
        """Raise BrokerRefused if the server is unsuitable or might lose jobs. `place` names the server."""
        if self.version < OLDEST:
            raise BrokerRefused(f"{self.name} at {place} is too old: taskflow needs Redis 7.2 or newer, or Valkey 7.2 or newer")
        if self.role != "master":
            raise BrokerRefused(f"{self.name} at {place} is a read-only replica: name the primary in the broker URL")
        if self.is_cluster:
            raise BrokerRefused(f"{self.name} at {place} is a node of a Redis Cluster, which taskflow does not support")
        if self.evicts and not may_evict:
            raise BrokerRefused(
                f"{self.name} at {place} has maxmemory-policy {self.policy}: the server deletes jobs when its memory is full. "
                "Set it to noeviction, or add ?evicting=1 to the broker URL if jobs may be lost"
            )

    def findings(self, place: str, *, settings: dict[str, str], is_fsync: bool) -> list[Finding]:
        """Return findings for `taskflow doctor`. `settings` are from CONFIG GET, and may be empty on a managed server."""
        return [
            Finding("server", "ok" if self.version >= OLDEST else "problem", f"{self.name} at {place}"),
            self._eviction(),
            self._room(),
            self._persistence(settings, is_fsync=is_fsync),
            self._replication(),
        ]

    def _eviction(self) -> Finding:
        if self.evicts:
            return Finding("eviction", "problem", f"maxmemory-policy is {self.policy}: a full server deletes jobs; set noeviction")
        return Finding("eviction", "ok", f"maxmemory-policy is {self.policy}: a full server refuses new jobs, but loses none")

    def _room(self) -> Finding:
        if not self.maxmemory:
            return Finding("room", "note", f"{self.used_memory:,} bytes in use; maxmemory is not set, so the system may kill the server")
        is_tight = self.used_memory > _LITTLE_ROOM * self.maxmemory
        return Finding("room", "problem" if is_tight else "ok", f"{self.used_memory:,} of {self.maxmemory:,} bytes in use")

    def _persistence(self, settings: dict[str, str], *, is_fsync: bool) -> Finding:
        if self.has_aof:
            how = settings.get("appendfsync", "everysec")
            if how == "always" or is_fsync:
                return Finding("persistence", "ok", f"append-only file, appendfsync {how}: acknowledged jobs survive a power failure")
            return Finding(
                "persistence",
                "note",
                f"append-only file, appendfsync {how}: a power failure may lose the last second or more; see ?durability=fsync",
            )
        if settings.get("save", ""):
            return Finding(
                "persistence",
                "problem",
                f"snapshots only (save {settings['save']}): a crash loses everything since the last one; set appendonly yes",
            )
        return Finding("persistence", "problem", "no append-only file: jobs are lost when the server stops; set appendonly yes")

    def _replication(self) -> Finding:
        if not self.replicas:
            return Finding("replication", "note", "no replica: jobs are lost with the machine")
        return Finding("replication", "ok", f"{self.replicas} replica(s); a failover may lose changes that have not reached them")

    @property
    def evicts(self) -> bool:
        """Return True if the server may delete jobs. A volatile-* policy deletes only keys that expire. In taskflow, these are locks,
        lists of waiting listeners, and large contents sent ahead of their call, which has no effect without them."""
        return self.policy.startswith("allkeys-")

    def payload_lost(self, place: str) -> BrokerError:
        """Return the error to raise if a payload that was sent ahead disappeared before its call arrived."""
        if self.maxmemory and self.policy != "noeviction":
            return full(place)
        return BrokerUnavailable(f"Redis at {place} lost a payload before its job was stored: send it again")
