"""Describes the address and options of a database server, reads them from a broker URL, and connects to it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, unquote

import asyncpg
import msgspec

from taskflow.broker.postgres.errors import ERRORS, Unsuitable, connect_error, may_pass
from taskflow.model.errors import BrokerUrlError
from taskflow.model.wording import IN_PASSWORDS

log: Final = logging.getLogger("taskflow")

ANSWER_TIMEOUT: Final = 4.0
"""Seconds that one statement may take. It is less than the default `enqueue_timeout` (5 s), so that the broker's error is raised first."""

CONNECT_TIMEOUT: Final = 3.0
"""Seconds that connecting may take, however many addresses there are."""

DEFAULT_PORT: Final = 5432


_ARRAYS: Final = [
    {"oid": oid, "ns": "pg_catalog", "name": name, "kind": b"b", "basetype": None, "elemtype": elemtype, "elemdelim": ","}
    | dict.fromkeys(("range_subtype", "attrtypoids", "attrnames"))
    for oid, name, elemtype in ((1000, "_bool", 16), (1001, "_bytea", 17), (1005, "_int2", 21), (1007, "_int4", 23), (1016, "_int8", 20))
]
"""The array types that we use. Their OIDs are the same on every server, so the driver need not look them up on each connection."""

_SETTINGS: Final = {"application_name": "taskflow", "standard_conforming_strings": "on"}
"""The settings of each connection, unless the URL has pooled=1. Pgbouncer accepts them too."""


class Address(NamedTuple):
    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PostgresTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a database, and how to connect to it. `password` is never shown.

    `others`     further addresses, if there are standbys; any of the addresses may be the primary, and this may change
    `listen_at`  addresses of the server itself, for listening if the URL names a pooler that loses wake-ups; the primary among them is used
    `tls`        "disable", "prefer", "require", "verify-ca" or "verify-full", as in libpq
    `is_pooled`  True if connections go through a pooler that does not support prepared statements
    `owner`      a role that is trusted with the schema, in addition to those listed in `schema.check_owner`
    """

    host: str = "localhost"
    port: int = DEFAULT_PORT
    others: tuple[Address, ...] = ()
    database: str | None = None
    user: str | None = None
    password: str | None = None
    tls: str = "prefer"
    ca_file: str | None = None
    listen_at: tuple[Address, ...] = ()
    is_pooled: bool = False
    owner: str | None = None

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the struct's default repr would show the password
        return [("at", str(self))]

    def __repr__(self) -> str:
        return f"<PostgresTarget {self} {self.database!r} as {self.user!r}>"

    def __str__(self) -> str:
        return shown(self.places)

    @property
    def places(self) -> tuple[Address, ...]:
        return (Address(self.host, self.port), *self.others)

    async def connect(self, places: Sequence[Address]) -> tuple[asyncpg.Connection, Address]:
        """Connect to the only address, or find the primary among several, trying them in order. Return the connection and its address."""
        if len(places) == 1:
            return await self._connect_to(places[0]), places[0]
        return await _Search(self, places).run()

    async def connect_to_primary(self, place: Address) -> asyncpg.Connection:
        """Connect to one address. Raises asyncpg.TargetServerAttributeNotMatched if it is read-only."""
        return await self._connect_to(place, target_session_attrs="read-write")

    async def _connect_to(self, place: Address, **more: Any) -> asyncpg.Connection:
        if self.tls == "prefer" and not _is_loopback(place.host):
            _warn_of_prefer(place)
        try:
            connection: asyncpg.Connection = await asyncpg.connect(
                host=place.host,
                port=place.port,
                database=self.database,
                user=self.user,
                password=self.password,
                ssl=self._tls(),
                timeout=CONNECT_TIMEOUT,
                command_timeout=None,
                statement_cache_size=0 if self.is_pooled else 100,
                server_settings={} if self.is_pooled else _SETTINGS,
                **more,
            )
        except ERRORS as error:
            raise connect_error(error, self.tls, CONNECT_TIMEOUT) from error
        with contextlib.suppress(AttributeError, LookupError):  # other versions of the driver query the types
            connection.get_settings().register_data_types(_ARRAYS)
        return connection

    def _tls(self) -> Any:
        if self.ca_file is not None:
            try:
                context = ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:
                raise Unsuitable(f"cannot be verified, because tls_ca={self.ca_file} cannot be read: {error}") from error
            context.check_hostname = self.tls == "verify-full"
            return context
        return _checked_by_the_system() if self.tls == "verify-full" else self.tls


@cache
def _checked_by_the_system() -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificate authorities. It is created once, because loading them
    takes longer than connecting."""
    return ssl.create_default_context()


@cache
def _warn_of_prefer(place: Address) -> None:
    """Warn about tls=prefer, once per process and address."""
    log.warning(
        "PostgreSQL at %s: with tls=prefer, the default, a connection is encrypted only if the server offers TLS. The server's identity "
        "is not checked. Add tls=verify-full to the broker URL, or tls=disable where the network is trusted",
        place,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("/")


def shown(places: Sequence[Address]) -> str:
    return ",".join(map(str, places))


def drop(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(*ERRORS, RuntimeError):
        connection.terminate()


def is_only_read(connection: asyncpg.Connection) -> bool:
    """Return True if the server last reported that it is read-only. Data read there may be long out of date."""
    settings = connection.get_settings()
    return "on" in (getattr(settings, "default_transaction_read_only", ""), getattr(settings, "in_hot_standby", ""))


class _Search:
    """Finds the primary among several addresses.

    Each address gets a head start before the next one is tried in parallel, so that an unresponsive one costs only a
    fraction of the time. The driver by itself would try them one after another, and might spend all the time on the first.
    """

    def __init__(self, server: PostgresTarget, places: Sequence[Address]) -> None:
        self._server = server
        self._untried = list(places)
        self._head_start = CONNECT_TIMEOUT / (2 * len(places))
        self._trying: dict[asyncio.Task[asyncpg.Connection], Address] = {}
        self._failures: dict[Address, Exception] = {}

    async def run(self) -> tuple[asyncpg.Connection, Address]:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    while self._untried or self._trying:
                        self._try_next()
                        if found := await self._first_to_succeed():
                            return found
            raise self._failure()
        finally:
            for task in self._trying:
                task.add_done_callback(_drop_unwanted)
                task.cancel()

    def _try_next(self) -> None:
        if self._untried:
            place = self._untried.pop(0)
            self._trying[asyncio.create_task(self._server.connect_to_primary(place))] = place

    async def _first_to_succeed(self) -> tuple[asyncpg.Connection, Address] | None:
        """Return the connection and its address if an attempt succeeded, or None if the next address should be tried."""
        timeout = self._head_start if self._untried else None
        done, _ = await asyncio.wait(self._trying, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            place = self._trying.pop(task)
            try:
                return task.result(), place
            except ERRORS as error:
                self._failures[place] = error
        return None

    def _failure(self) -> Exception:
        """Return the first error if every address has failed for good, else a ConnectionError that describes all the failures."""
        failures = list(self._failures.values())
        if not self._trying and not any(may_pass(error) for error in failures):
            return failures[0]
        silent = (f"{place} does not answer" for place in self._trying.values())
        return ConnectionError("; ".join([*(f"{place} {_said(error)}" for place, error in self._failures.items()), *silent]))


def _said(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "is read-only"
    return f"reports: {str(error) or type(error).__name__}"


def _drop_unwanted(task: asyncio.Task[asyncpg.Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        drop(task.result())


# --- broker URLs ------------------------------------------------------------------------------------------------------

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
            "broker URL has tls=verify-ca without tls_ca=: name a file of certificate authorities, or use the system's with tls=verify-full"
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
