"""A throw-away store beside the application's own: a namespace on the same server, or a file in the same folder."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from taskflow.broker.url import connect, masked
from taskflow.cli.interrupts import handled_by, raising
from taskflow.model.errors import BrokerRefused, ConfigurationError

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

FILES: Final = ("tls_ca", "tls_cert", "tls_key")
"""Options that may name files relative to the current folder. A worker for the store may run in another one."""


class HasNamespace(Protocol):
    """A broker whose jobs lie in a namespace that it can delete."""

    async def drop_namespace(self) -> None: ...


@contextmanager
def scratch_store(url: str) -> Iterator[str]:
    """Yield the URL of a new store like the one at `url`. When the block ends, the store is deleted, also after a signal.

    Raises ConfigurationError for memory://, and BrokerRefused if the store cannot be created.
    """
    connect(url)  # raises for a wrong URL
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        raise ConfigurationError("a broker memory:// belongs to one process: name a store that processes share with --broker")
    with raising(*STOPPING[1:]), _folder_beside(url) if scheme == "sqlite" else _namespace_beside(url) as scratch:
        yield scratch


@contextmanager
def _folder_beside(url: str) -> Iterator[str]:
    beside = os.path.dirname(os.path.abspath(unquote(urlsplit(url).path.removeprefix("/"))))
    try:
        folder = tempfile.mkdtemp(prefix=".taskflow-bench-", dir=beside)
    except OSError as error:
        raise BrokerRefused(f"no folder can be made in {beside}: {error.strerror}") from error
    try:
        yield f"sqlite:///{quote(f'{folder}/queue.db')}"
    finally:
        with handled_by(signal.SIG_IGN, *STOPPING):  # deleting takes a moment
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _namespace_beside(url: str) -> Iterator[str]:
    options = dict(parse_qsl(urlsplit(url).query)) | {"namespace": f"taskflow-bench-{secrets.token_hex(4)}"}
    options.pop("migrate", None)  # there is nothing to migrate yet
    options |= {name: os.path.abspath(options[name]) for name in FILES if os.path.exists(options.get(name, ""))}
    scratch = f"{url.partition('?')[0]}?{urlencode(options)}"
    try:
        yield scratch
    except BrokerRefused as error:
        raise BrokerRefused(f"the namespace {options['namespace']} cannot be used at {masked(url)}: {error}") from error
    finally:
        with handled_by(signal.SIG_IGN, *STOPPING):  # deleting takes a moment
            asyncio.run(_drop(scratch))


async def _drop(url: str) -> None:
    broker = connect(url)
    try:
        await cast(HasNamespace, broker).drop_namespace()
    finally:
        await broker.close()
