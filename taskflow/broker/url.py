"""Parses broker URLs. Only this module and `taskflow.testing` import concrete brokers; this one imports just the one that a URL names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.envelope import check_namespace
from taskflow.model.errors import BrokerUrlError, ConfigurationError, DriverMissing
from taskflow.model.printable import nearest
from taskflow.model.rules import Rules
from taskflow.model.wording import IN_PASSWORDS

_REDIS_OPTIONS: Final = ("namespace", "durability", "evicting", "tls_ca", "tls_cert", "tls_key", "tls_check")
_POSTGRES_OPTIONS: Final = ("namespace", "tls", "tls_ca", "listen", "pooled", "migrate", "owner")

SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    "memory": ("namespace",),
    "sqlite": ("namespace", "shared", "migrate", "owner"),
    "redis": _REDIS_OPTIONS,
    "rediss": _REDIS_OPTIONS,
    "postgresql": _POSTGRES_OPTIONS,
    "postgres": _POSTGRES_OPTIONS,
}
"""The URL schemes that this version supports, with the parameters of each."""

DEFAULT_NAMESPACE: Final = "taskflow"

_LATER: Final = ("redis+sentinel", "redis+cluster")

_Open = Callable[[SplitResult, dict[str, str], Seams | None, Rules | None], Broker]


def connect(url: str, *, seams: Seams | None = None, rules: Rules | None = None) -> Broker:
    """Return the broker for a URL, without opening a connection.

    Raises BrokerUrlError, naming the faulty part, if the URL is invalid; ConfigurationError if this version lacks
    the broker; and DriverMissing if the broker's driver is not installed. No message shows a password.
    """
    if not isinstance(url, str):
        raise BrokerUrlError(f"a broker URL must be text, such as sqlite:///taskflow.db, got {type(url).__name__}")
    scheme, parts = _parsed(url)
    options = _options(parts, SCHEMES[scheme])
    if scheme != "memory":
        import encodings.idna  # noqa: F401  # pyright: ignore[reportUnusedImport]  # see `load`: event loops would import it later
    return _OPENERS[scheme](parts, options, seams, rules)


def load(url: str) -> None:
    """Import the modules that this URL's broker needs, in the caller's thread. If another thread were importing them while the process
    forks, the child would wait forever for that thread's import lock. Errors are left to the first use of the broker."""
    with suppress(ConfigurationError, ImportError, OSError):
        connect(url)


def masked(url: str) -> str:
    """Return the URL for messages, with `***` in place of its password and of unknown parameters.

    If the URL is malformed, or an unescaped password may extend into other parts, only the scheme is shown.
    """
    try:
        scheme, parts = _parsed(url)
    except ConfigurationError:
        return _unparsed(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    if _may_hold_password(scheme, parts, hosts):
        return _unparsed(url)
    pieces = [piece if piece.partition("=")[0] in SCHEMES[scheme] else "***" for piece in parts.query.split("&") if piece]
    return f"{scheme}://{_shown_user(scheme, userinfo)}{unquote(hosts)}{parts.path}{'?' if pieces else ''}{'&'.join(pieces)}"


def _unparsed(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://***" if separator and _SCHEME.fullmatch(scheme) else "***"


def _may_hold_password(scheme: str, parts: SplitResult, hosts: str) -> bool:
    """Return True if a part that would be shown may belong to a password whose `/`, `?` or `:` is not written as %2F, %3F or %3A."""
    if scheme == "sqlite":
        return bool(parts.netloc)
    if "@" in parts.path + parts.query or not all(_HOST.fullmatch(host) for host in unquote(hosts).split(",")):
        return True
    return scheme in ("redis", "rediss") and not re.fullmatch("/?[0-9]*/?", parts.path)


def _shown_user(scheme: str, userinfo: str) -> str:
    """Return the user for messages. A Redis user without a password is hidden too, because it is often a password in the wrong place."""
    name, colon, _ = userinfo.partition(":")
    if not userinfo:
        return ""
    if not colon:
        return "***@" if scheme in ("redis", "rediss") else f"{name}@"
    return f"{name}:***@"


# --- the brokers --------------------------------------------------------------------------------------------------


def _open_memory(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    if parts.netloc or parts.path:
        raise BrokerUrlError("broker URL memory:// takes neither a host nor a path: remove what follows it")
    from taskflow.broker.memory import MemoryBroker

    return MemoryBroker(seams=seams, rules=rules)


def _open_sqlite(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    path, shared, migrates, owner = _path(parts), _flag(options, "shared", "0"), _flag(options, "migrate", "1"), _user(options)
    from taskflow.broker.sqlite import Opening, SqliteBroker

    namespace = options.get("namespace", DEFAULT_NAMESPACE)
    return SqliteBroker(path, namespace=namespace, shared=shared, opening=Opening(migrates, owner), seams=seams, rules=rules)


def _open_redis(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    from taskflow.broker.redis import RedisBroker
    from taskflow.broker.redis.server import server_of

    return RedisBroker(server_of(parts, options), namespace=options.get("namespace", DEFAULT_NAMESPACE), rules=rules)


def _open_postgres(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    if find_spec("asyncpg") is None:
        raise DriverMissing("postgresql:// brokers need asyncpg: pip install asyncpg")
    from taskflow.broker.postgres import PostgresBroker
    from taskflow.broker.postgres.connect.server import server_of

    migrates = _flag(options, "migrate", "1")
    namespace = options.get("namespace", DEFAULT_NAMESPACE)
    return PostgresBroker(server_of(parts, options), namespace=namespace, rules=rules, migrates=migrates)


_OPENERS: Final[Mapping[str, _Open]] = {
    "memory": _open_memory,
    "sqlite": _open_sqlite,
    "redis": _open_redis,
    "rediss": _open_redis,
    "postgresql": _open_postgres,
    "postgres": _open_postgres,
}


# --- the parts of a URL --------------------------------------------------------------------------------------------


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::[0-9]{0,5})?")


def _parsed(url: str) -> tuple[str, SplitResult]:
    """Return the scheme and the parts of a URL. Raises ConfigurationError if it is invalid; the message shows at most the scheme."""
    _check_characters(url)
    scheme = _scheme(url)
    parts = _split(url)
    for shown in (parts.netloc.rpartition("@")[2], parts.path, parts.query):  # not the user info: a password may contain any %xx
        _check_characters(unquote(shown))
    return scheme, parts


def _check_characters(text: str) -> None:
    control = next((c for c in text if c < " " or "\x7f" <= c <= "\x9f"), None)
    if control is not None:
        raise BrokerUrlError(
            f"broker URL has a control character, {control!r}: a secret read from a file often ends with a line break; strip it"
        )
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise BrokerUrlError("broker URL is not UTF-8: write its bytes as %xx")


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise BrokerUrlError("broker URL has no scheme: expected a URL such as sqlite:///taskflow.db")
    scheme = scheme.lower()
    if scheme in _LATER:
        raise ConfigurationError(f"this version of taskflow does not support {scheme}:// brokers: use redis:// or sqlite:///taskflow.db")
    if scheme not in SCHEMES:
        near = nearest(scheme, SCHEMES)
        hint = f"did you mean {near}://?" if near else f"known schemes are {', '.join(f'{known}://' for known in SCHEMES)}"
        raise BrokerUrlError(f"broker URL has the unknown scheme {scheme!r}: {hint}")
    return scheme


def _split(url: str) -> SplitResult:
    parts: SplitResult | None = None
    with suppress(ValueError):  # the exception's message may quote the password, so it is not kept as the cause
        parts = urlsplit(_with_one_host(url))
    if parts is None:
        raise BrokerUrlError(f"broker URL {_unparsed(url)} has a malformed host; {IN_PASSWORDS}")
    if parts.fragment or url.endswith("#"):
        raise BrokerUrlError(f"broker URL {_unparsed(url)} has a '#': in a name or a password, write # as %23")
    return parts


def _with_one_host(url: str) -> str:
    """Escape the brackets in a list of hosts as %5B and %5D, because urlsplit() rejects postgresql://[::1]:5432,db2/app."""
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    hosts = authority.rpartition("@")[2]
    if "," not in hosts:
        return url
    before = authority.removesuffix(hosts)
    return f"{scheme}{separator}{before}{hosts.replace('[', '%5B').replace(']', '%5D')}{rest.removeprefix(authority)}"


def _flag(options: dict[str, str], name: str, default: str) -> bool:
    value = options.get(name, default)
    if value not in ("0", "1"):
        raise BrokerUrlError(f"broker URL has {name}={value!r}: expected 0 or 1")
    return value == "1"


def _user(options: dict[str, str]) -> int | None:
    """Return the uid that `owner=` gives or names, or None without `owner=`. Raises BrokerUrlError if no user has that name."""
    owner = options.get("owner")
    if owner is None or (owner.isascii() and owner.isdecimal() and len(owner) <= _UID_DIGITS):
        return None if owner is None else int(owner)
    from pwd import getpwnam

    try:
        return getpwnam(owner).pw_uid
    except KeyError:
        raise BrokerUrlError(f"broker URL has owner={owner!r}: expected the name or the uid of a user of this machine") from None


_UID_DIGITS: Final = 10

_AS_LIBPQ_HAS_THEM: Final = {"sslmode": "tls", "sslrootcert": "tls_ca"}


def _options(parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    if "@" in parts.query:  # the "@" may be part of the password, so the message does not repeat it
        raise BrokerUrlError(f"broker URL has an '@' after its '?'; {IN_PASSWORDS}")
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            ours = _AS_LIBPQ_HAS_THEM.get(name)
            near = ours if ours in known else nearest(name, known)
            hint = f"did you mean {near}=?" if near else f"known parameters are {', '.join(known)}"
            raise BrokerUrlError(f"broker URL has an unknown parameter {name!r}: {hint}")
        if name in options:
            raise BrokerUrlError(f"broker URL has the parameter {name!r} twice")
        options[name] = value
    namespace = options.get("namespace", DEFAULT_NAMESPACE)
    try:
        check_namespace(namespace)
    except ValueError as error:
        raise BrokerUrlError(f"broker URL has the {error}") from None
    return options


def _shown(parts: SplitResult) -> str:
    """Return the URL as written, but without parameters; geturl() would drop slashes when there is no host.
    If it has a host and an `@`, only the scheme is shown, because the rest may contain a password."""
    return f"{parts.scheme}://{'***' if parts.netloc and '@' in parts.netloc + parts.path else parts.netloc + parts.path}"


def _path(parts: SplitResult) -> Path:
    if parts.netloc:
        raise BrokerUrlError(
            f"broker URL {_shown(parts)!r} names a host: write three slashes before a relative path, as in sqlite:///queue.db, "
            "and four for an absolute one, as in sqlite:////var/queue.db"
        )
    path = unquote(parts.path.removeprefix("/"))
    if not path or path == ":memory:" or path.endswith("/"):
        raise BrokerUrlError(
            f"broker URL {_shown(parts)!r} names no file: write sqlite:///taskflow.db for example, or use memory:// in tests"
        )
    return Path(path)
