"""Reads what INFO reports about a server, and checks whether jobs are safe on it."""

from __future__ import annotations

from typing import Final

import msgspec

from taskflow.broker.console import Finding
from taskflow.broker.redis.errors import full
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable

OLDEST: Final = (7, 2)
"""The oldest suitable version: Redis 7.2, or Valkey, which reports itself as compatible with it. Older servers lack WAITAOF."""


_LITTLE_ROOM: Final = 0.9
"""The fraction of maxmemory in use above which `taskflow doctor` reports a problem."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from a server's INFO. `version` is the Redis version with which it is compatible; `name` is its own name and version."""

    name: str
    version: tuple[int, ...]
    role: str
    policy: str
    maxmemory: int
    used_memory: int
    has_aof: bool
    replicas: int
    is_cluster: bool

    @classmethod
    def of(cls, info: bytes) -> ServerInfo:
        rows = (line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line)
        reported = {name: value for name, _, value in rows}
        version = reported.get("redis_version", "0")
        valkey = reported.get("valkey_version")
        return cls(
            name=f"Valkey {valkey}" if valkey else f"Redis {version}",
            version=tuple(int(part) for part in version.split(".") if part.isdigit()),
            role=reported.get("role", "master"),
            policy=reported.get("maxmemory_policy", "noeviction"),
            maxmemory=int(reported.get("maxmemory", 0)),
            used_memory=int(reported.get("used_memory", 0)),
            has_aof=reported.get("aof_enabled") == "1",
            replicas=int(reported.get("connected_slaves", 0)),
            is_cluster=reported.get("cluster_enabled") == "1",
        )

    def check(self, place: str, *, may_evict: bool) -> None:
        """Raise BrokerRefused if the server is unsuitable or might lose jobs. `place` names the server."""
        if self.version < OLDEST:
            raise BrokerRefused(f"{self.name} at {place} is too old: taskflow needs Redis 7.2 or newer, or Valkey 7.2 or newer")
        if self.role != "master":
            raise BrokerRefused(f"{self.name} at {place} is a read-only replica: name the primary in the broker URL")
        if self.is_cluster:
            raise BrokerRefused(f"{self.name} at {place} is a node of a Redis Cluster, which taskflow does not support")
        if self.evicts and not may_evict:
            raise BrokerRefused(
                f"{self.name} at {place} has maxmemory-policy {self.policy}: it deletes jobs when its memory is full. "
                "Set it to noeviction, or add ?evicting=1 to the broker URL if jobs may be lost"
            )

    def findings(self, place: str, *, settings: dict[str, str], is_fsync: bool) -> list[Finding]:
        """Return findings for `taskflow doctor`. `settings` are from CONFIG GET, and may be empty on a managed server."""
        return [
            Finding("server", "ok" if self.version >= OLDEST else "problem", f"{self.name} at {place}"),
            self._eviction(),
            self._room(),
            self._persistence(settings, is_fsync=is_fsync),
            self._replication(),
        ]

    def _eviction(self) -> Finding:
        if self.evicts:
            return Finding("eviction", "problem", f"maxmemory-policy is {self.policy}: a full server deletes jobs; set noeviction")
        return Finding("eviction", "ok", f"maxmemory-policy is {self.policy}: a full server refuses new jobs and loses none")

    def _room(self) -> Finding:
        if not self.maxmemory:
            return Finding("room", "note", f"{self.used_memory:,} bytes in use; maxmemory is not set, so the system may kill the server")
        is_tight = self.used_memory > _LITTLE_ROOM * self.maxmemory
        return Finding("room", "problem" if is_tight else "ok", f"{self.used_memory:,} of {self.maxmemory:,} bytes in use")

    def _persistence(self, settings: dict[str, str], *, is_fsync: bool) -> Finding:
        if self.has_aof:
            how = settings.get("appendfsync", "everysec")
            if how == "always" or is_fsync:
                return Finding("persistence", "ok", f"append-only file, appendfsync {how}: an answered enqueue survives a power failure")
            return Finding(
                "persistence",
                "note",
                f"append-only file, appendfsync {how}: a power failure may lose the last second or more; see ?durability=fsync",
            )
        if settings.get("save", ""):
            return Finding(
                "persistence",
                "problem",
                f"snapshots only (save {settings['save']}): a crash loses everything since the last one; set appendonly yes",
            )
        return Finding("persistence", "problem", "no append-only file: jobs are lost when the server stops; set appendonly yes")

    def _replication(self) -> Finding:
        if not self.replicas:
            return Finding("replication", "note", "no replica: jobs are lost with the machine")
        return Finding("replication", "ok", f"{self.replicas} replica(s); a failover may lose changes that they have not received")

    @property
    def evicts(self) -> bool:
        """Return True if the server may delete jobs. A volatile-* policy deletes only keys that expire. In taskflow, these are large
        payloads and results sent ahead of their call, and a call without them has no effect."""
        return self.policy.startswith("allkeys-")

    def payload_lost(self, place: str) -> BrokerError:
        """Return the error to raise if a payload that was sent ahead disappeared before its call arrived."""
        if self.maxmemory and self.policy != "noeviction":
            return full(place)
        return BrokerUnavailable(f"Redis at {place} lost a payload before its job was stored: send it again")
