"""The peers: what runs each, at which settings, and what it does not do."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from typing import Final

from benchmarks.peers.environments import HERE, version_of

REDIS: Final = "redis"
POSTGRES: Final = "postgres"


@dataclass(frozen=True)
class Peer:
    """`jobs` are so many as it drains in a few seconds.

    `program`      of `programs`, or for node a folder of `node`
    `package`      whose version is told
    `concurrency`  jobs at a time: 100, or the number of threads that it is fastest with
    `in_threads`   its jobs are plain functions
    `tells_results`  a caller can wait for one; `looks_for_results`: by looking for it every half second or more
    `plans`        a job can be sent for an instant, without another process beside
    `lacks`        of what taskflow has switched on while it is measured
    `killed`       what becomes of the jobs of a worker that is killed
    """

    name: str
    store: str
    program: str
    package: str
    jobs: int
    lacks: str
    killed: str
    concurrency: int = 100
    variant: str = ""
    in_node: bool = False
    in_threads: bool = False
    python: str | None = None
    tells_results: bool = False
    looks_for_results: bool = False
    plans: bool = False

    @property
    def asks(self) -> bool:
        """Whether a caller hears of a result when it is there."""
        return self.tells_results and not self.looks_for_results

    @property
    def version(self) -> str:
        if not self.in_node:
            return version_of(self.program, self.package)
        return _version_in_node(self.program)


def _version_in_node(package: str) -> str:
    told = json.loads((HERE / "node" / package / "package.json").read_text())
    return str(told["dependencies"][package])


PEERS: Final = tuple(Peer(**told) for told in tomllib.loads((HERE / "catalogue.toml").read_text())["peers"])


def of_store(store: str, names: frozenset[str] | None) -> list[Peer]:
    """Those of a store; of those names alone, where any are given."""
    return [peer for peer in PEERS if peer.store == store and (names is None or peer.name in names)]
