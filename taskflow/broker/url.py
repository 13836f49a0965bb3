"""Broker URLs: the one place that imports a concrete broker, and only the one asked for."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerUrlError, ConfigurationError
from taskflow.model.rules import Rules
from taskflow.model.seams import Seams

SCHEMES: Final = ("memory", "sqlite")
_LATER: Final = ("redis", "rediss", "redis+sentinel", "redis+cluster", "postgresql", "postgres")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")


def connect(url: str, *, seams: Seams | None = None, rules: Rules | None = None) -> Broker:
    """The broker that a URL names; nothing is opened yet. BrokerUrlError naming the part that is wrong, never a password."""
    scheme = _scheme(url)
    options = _options(url, {"memory": ("namespace",), "sqlite": ("namespace", "shared")}[scheme])
    if scheme == "memory":
        from taskflow.broker.memory import MemoryBroker

        return MemoryBroker(seams=seams, rules=rules)
    from taskflow.broker.sqlite import SqliteBroker

    shared = options.get("shared", "0") == "1"
    return SqliteBroker(_path(url), namespace=options.get("namespace", "taskflow"), shared=shared, seams=seams, rules=rules)


def masked(url: str) -> str:
    """The URL as it may be shown: without its password."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", url)


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise BrokerUrlError(f"broker URL {masked(url)!r} has no scheme: it reads like sqlite:///taskflow.db")
    if scheme in _LATER:
        raise ConfigurationError(f"{scheme}:// brokers are not part of this version of taskflow: use sqlite:///taskflow.db")
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"did you mean {near[0]}://?" if near else f"there are {', '.join(SCHEMES)}"
        raise BrokerUrlError(f"broker URL of unknown scheme {scheme!r}: {hint}")
    return scheme


def _options(url: str, known: tuple[str, ...]) -> dict[str, str]:
    options = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    for name, value in options.items():
        if name not in known:
            raise BrokerUrlError(f"broker URL has an unknown parameter {name!r}: it takes {', '.join(known)}")
        if name == "namespace" and not _NAMESPACE.fullmatch(value):
            raise BrokerUrlError(f"broker URL has the namespace {value!r}: it has 1 to 100 of the characters A-Z a-z 0-9 _ . -")
        if name == "shared" and value not in ("0", "1"):
            raise BrokerUrlError(f"broker URL has shared={value!r}: it is 0 or 1")
    return options


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc:
        raise BrokerUrlError(f"broker URL {masked(url)!r} names a host: a file has three slashes, sqlite:///queue.db, or four")
    path = unquote(parts.path.removeprefix("/"))
    if not path or path == ":memory:":
        raise BrokerUrlError(f"broker URL {masked(url)!r} names no file, as sqlite:///taskflow.db does; for tests there is memory://")
    return Path(path)
