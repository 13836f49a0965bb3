"""Broker URLs: the one place that imports a concrete broker, and only the one asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from taskflow.broker.protocol import Broker
from taskflow.broker.words import IN_PASSWORDS
from taskflow.model.envelope import QUEUE_NAME
from taskflow.model.errors import BrokerUrlError, ConfigurationError, DriverMissing
from taskflow.model.near import nearest
from taskflow.model.rules import Rules
from taskflow.model.seams import Seams

_REDIS_OPTIONS: Final = ("namespace", "durability", "evicting", "tls_ca", "tls_cert", "tls_key", "tls_check")
_POSTGRES_OPTIONS: Final = ("namespace", "tls", "tls_ca", "listen", "pooled", "migrate", "owner")

SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    "memory": ("namespace",),
    "sqlite": ("namespace", "shared"),
    "redis": _REDIS_OPTIONS,
    "rediss": _REDIS_OPTIONS,
    "postgresql": _POSTGRES_OPTIONS,
    "postgres": _POSTGRES_OPTIONS,
}
"""What this version connects to, and the parameters that each takes."""

DEFAULT_NAMESPACE: Final = "taskflow"

_LATER: Final = ("redis+sentinel", "redis+cluster")

_Open = Callable[[SplitResult, dict[str, str], Seams | None, Rules | None], Broker]


def connect(url: str, *, seams: Seams | None = None, rules: Rules | None = None) -> Broker:
    """The broker that a URL names; nothing is opened yet.

    Raises BrokerUrlError naming the part that is wrong, ConfigurationError for a broker that this version does not have. Neither tells
    a password.
    """
    if not isinstance(url, str):
        raise BrokerUrlError(f"broker URL {url!r} is no text: it reads like sqlite:///taskflow.db")
    scheme = _scheme(url)
    parts = _split(url)
    options = _options(parts, SCHEMES[scheme])
    return _OPENERS[scheme](parts, options, seams, rules)


def masked(url: str) -> str:
    """The URL as it may be shown: without its password, and without parameters that look like one."""
    before = "://" if "://" in url else "^"
    without = re.sub(rf"({before}[^:@/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&#]*(?:pass|secret|token)[^=&#]*=)[^&#]*", r"\1***", without, flags=re.IGNORECASE)


# --- the brokers --------------------------------------------------------------------------------------------------


def _open_memory(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    if parts.netloc or parts.path:
        raise BrokerUrlError("broker URL memory:// goes on after it: it has neither host nor path")
    from taskflow.broker.memory import MemoryBroker

    return MemoryBroker(seams=seams, rules=rules)


def _open_sqlite(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    path = _path(parts)
    shared = options.get("shared", "0")
    if shared not in ("0", "1"):
        raise BrokerUrlError(f"broker URL has shared={shared!r}: it is 0 or 1")
    from taskflow.broker.sqlite import SqliteBroker

    return SqliteBroker(path, namespace=options.get("namespace", DEFAULT_NAMESPACE), shared=shared == "1", seams=seams, rules=rules)


def _open_redis(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    from taskflow.broker.redis import RedisBroker
    from taskflow.broker.redis.address import server_of

    return RedisBroker(server_of(parts, options), namespace=options.get("namespace", DEFAULT_NAMESPACE), rules=rules)


def _open_postgres(parts: SplitResult, options: dict[str, str], seams: Seams | None, rules: Rules | None) -> Broker:
    if find_spec("asyncpg") is None:
        raise DriverMissing("postgresql:// brokers need asyncpg: pip install 'taskflow-jobs[postgres]'")
    from taskflow.broker.postgres import PostgresBroker
    from taskflow.broker.postgres.address import server_of

    migrate = options.get("migrate", "1")
    if migrate not in ("0", "1"):
        raise BrokerUrlError(f"broker URL has migrate={migrate!r}: it is 0 or 1")
    namespace = options.get("namespace", DEFAULT_NAMESPACE)
    return PostgresBroker(server_of(parts, options), namespace=namespace, rules=rules, migrates=migrate == "1")


_OPENERS: Final[Mapping[str, _Open]] = {
    "memory": _open_memory,
    "sqlite": _open_sqlite,
    "redis": _open_redis,
    "rediss": _open_redis,
    "postgresql": _open_postgres,
    "postgres": _open_postgres,
}


# --- the parts of a URL --------------------------------------------------------------------------------------------


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise BrokerUrlError(f"broker URL {masked(url)!r} has no scheme: it reads like sqlite:///taskflow.db")
    scheme = scheme.lower()
    if scheme in _LATER:
        raise ConfigurationError(f"{scheme}:// brokers are not part of this version of taskflow: use redis:// or sqlite:///taskflow.db")
    if scheme not in SCHEMES:
        near = nearest(scheme, SCHEMES)
        hint = f"did you mean {near[0]}://?" if near else f"there are {', '.join(f'{known}://' for known in SCHEMES)}"
        raise BrokerUrlError(f"broker URL of unknown scheme {scheme!r}: {hint}")
    return scheme


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(_with_one_host(url))
    except ValueError:  # its message may repeat what stands where the password does
        raise BrokerUrlError(f"broker URL {masked(url)!r} has a malformed host") from None
    if parts.fragment or url.endswith("#"):
        raise BrokerUrlError(f"broker URL {masked(url)!r} has a '#': where it belongs to a name it is written %23")
    return parts


def _with_one_host(url: str) -> str:
    """urlsplit() takes no brackets in a list of hosts, as in postgresql://[::1]:5432,db2/app: there they are written %5B and %5D."""
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    hosts = authority.rpartition("@")[2]
    if "," not in hosts:
        return url
    before = authority.removesuffix(hosts)
    return f"{scheme}{separator}{before}{hosts.replace('[', '%5B').replace(']', '%5D')}{rest.removeprefix(authority)}"


_AS_LIBPQ_HAS_THEM: Final = {"sslmode": "tls", "sslrootcert": "tls_ca"}


def _options(parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if "@" in name or "@" in value:  # it may be a part of the password, and is not repeated
            raise BrokerUrlError(f"broker URL has an '@' behind its '?'; {IN_PASSWORDS}")
        if name not in known:
            near = [ours for ours in [_AS_LIBPQ_HAS_THEM.get(name)] if ours in known] or nearest(name, known)
            hint = f"did you mean {near[0]}=?" if near else f"it takes {', '.join(known)}"
            raise BrokerUrlError(f"broker URL has an unknown parameter {name!r}: {hint}")
        if name in options:
            raise BrokerUrlError(f"broker URL has the parameter {name!r} twice")
        options[name] = value
    namespace = options.get("namespace", DEFAULT_NAMESPACE)
    if not QUEUE_NAME.fullmatch(namespace):
        raise BrokerUrlError(f"broker URL has the namespace {namespace!r}: it has 1 to 100 of the characters A-Z a-z 0-9 _ . -")
    return options


def _shown(parts: SplitResult) -> str:
    """As it was written: geturl() loses slashes of a URL without a host."""
    return masked(f"{parts.scheme}://{parts.netloc}{parts.path}")


def _path(parts: SplitResult) -> Path:
    if parts.netloc:
        raise BrokerUrlError(
            f"broker URL {_shown(parts)!r} names a host: a file has three slashes, sqlite:///queue.db, or four, sqlite:////var/queue.db"
        )
    path = unquote(parts.path.removeprefix("/"))
    if not path or path == ":memory:" or path.endswith("/"):
        raise BrokerUrlError(f"broker URL {_shown(parts)!r} names no file, as sqlite:///taskflow.db does; for tests there is memory://")
    if "\0" in path:
        raise BrokerUrlError(f"broker URL {_shown(parts)!r} has a zero byte in its path")
    return Path(path)
