"""Temporary Redis servers for benchmarks: on a free port and without persistence. They end with the benchmark."""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import redis

from benchmarks.cost import Cost
from tests.support.processes import HOST, TIMEOUT, free_port
from tests.support.servers import the_redis_binary

# The shell ends the server when the shell's input ends, which happens however this process ends.
_WATCH: Final = '"$@" >/dev/null 2>&1 & read _; kill -9 $!; wait'


@dataclass(frozen=True)
class ServerLoad:
    """A server's load since it was started: CPU seconds, and calls and microseconds by command."""

    cpu: float
    calls: dict[str, int]
    usec: dict[str, float]

    def since(self, earlier: ServerLoad) -> ServerLoad:
        return ServerLoad(
            self.cpu - earlier.cpu,
            {name: more for name, calls in self.calls.items() if (more := calls - earlier.calls.get(name, 0))},
            {name: spent - earlier.usec.get(name, 0.0) for name, spent in self.usec.items()},
        )

    @property
    def sent(self) -> int:
        """The number of commands that clients sent. The server also counts the commands of scripts, which are never among these."""
        return sum(self.calls.get(name, 0) for name in ("evalsha", "eval", "ping", "subscribe"))


class RedisServer:
    """A server that runs inside its block: the first of TASKFLOW_REDIS_SERVER, redis-server or valkey-server on PATH, and a wheel's."""

    trip: ClassVar[str] = "scripts/job"

    def __init__(self, **settings: str) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="taskflow-benchmark-")
        given = {"port": str(self.port), "bind": HOST, "save": "", "appendonly": "no", "dir": self._folder.name, **settings}
        arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "watch", str(the_redis_binary().path), *arguments], stdin=subprocess.PIPE, start_new_session=True
        )
        self.client = redis.Redis(host=HOST, port=self.port)

    def __enter__(self) -> Self:
        give_up_at = time.monotonic() + TIMEOUT
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                if time.monotonic() > give_up_at or self._shell.poll() is not None:
                    raise
                time.sleep(0.005)
            else:
                return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self._shell.communicate()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def dsn(self) -> str:
        return self.url

    def load(self) -> ServerLoad:
        info = self.info()
        stats = {name.removeprefix("cmdstat_"): told for name, told in info.items() if name.startswith("cmdstat_")}
        return ServerLoad(
            info["used_cpu_user"] + info["used_cpu_sys"],
            {name: told["calls"] for name, told in stats.items()},
            {name: float(told["usec"]) for name, told in stats.items()},
        )

    def cost(self) -> Cost:
        load = self.load()
        return Cost(load.cpu, load.calls.get("evalsha", 0) + load.calls.get("eval", 0))

    def told(self) -> int:
        load = self.load()
        return sum(load.calls.values()) - load.calls.get("info", 0)

    def sent(self) -> int:
        return self.load().sent

    def rest(self) -> None:
        """Do nothing, because all data is in memory."""

    def occupied(self) -> int:
        return int(self.info()["used_memory"])

    def info(self) -> dict[str, Any]:
        told: Any = self.client.info("everything")
        return dict(told)
