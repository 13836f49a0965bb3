"""The peers: the program that runs each, its settings, and what it lacks."""

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
    """A peer. `jobs` is about the number of jobs that it drains in a few seconds.

    `program`        a module of `programs`, or for Node a folder of `node`
    `package`        the package whose version is reported
    `concurrency`    jobs at a time: 100, or the number of threads with which it is fastest
    `in_threads`     True if its jobs are plain functions
    `tells_results`  True if a caller can wait for a result; with `polls_for_results`, by polling every half second or less often
    `plans`          True if a job can be sent for a later time without another process
    `joins`          True if a job can await a group of others and get their results
    `lacks`          the features that taskflow has enabled in the measurement and the peer lacks
    `killed`         what happens to the jobs of a killed worker
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
    polls_for_results: bool = False
    plans: bool = False
    joins: bool = False

    @property
    def asks(self) -> bool:
        """True if a caller is notified of a result."""
        return self.tells_results and not self.polls_for_results

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
    """Return the peers on a store: all of them, or only those with the given names."""
    return [peer for peer in PEERS if peer.store == store and (names is None or peer.name in names)]
