"""What a server tells of itself, and whether jobs are safe with it."""

from __future__ import annotations

from typing import Final

import msgspec

from taskflow.model.errors import BrokerRefused

OLDEST: Final = (7, 2)
"""Redis 7.2; Valkey tells that it is compatible with it by the same field. Older ones lack WAITAOF."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """From INFO. `version` is that of Redis whose commands it has, `name` what it calls itself."""

    name: str
    version: tuple[int, ...]
    role: str
    policy: str
    maxmemory: int
    used_memory: int
    has_aof: bool
    saves_snapshots: bool
    is_cluster: bool

    @classmethod
    def of(cls, info: bytes) -> Survey:
        lines = (line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line)
        told = {name: value for name, _, value in lines}
        version = told.get("redis_version", "0")
        valkey = told.get("valkey_version")
        return cls(
            name=f"Valkey {valkey}" if valkey else f"Redis {version}",
            version=tuple(int(part) for part in version.split(".") if part.isdigit()),
            role=told.get("role", "master"),
            policy=told.get("maxmemory_policy", "noeviction"),
            maxmemory=int(told.get("maxmemory", 0)),
            used_memory=int(told.get("used_memory", 0)),
            has_aof=told.get("aof_enabled") == "1",
            saves_snapshots=told.get("rdb_last_save_time", "0") != "0" and told.get("rdb_saves", "1") != "0",
            is_cluster=told.get("cluster_enabled") == "1",
        )

    def check(self, place: str, *, may_evict: bool) -> None:
        """BrokerRefused when jobs would not be safe there."""
        if self.version < OLDEST:
            raise BrokerRefused(f"{self.name} at {place} is too old: taskflow needs Redis 7.2 or newer, or Valkey 7.2 or newer")
        if self.role != "master":
            raise BrokerRefused(f"{self.name} at {place} is a read-only replica: name the primary in the broker URL")
        if self.is_cluster:
            raise BrokerRefused(f"{self.name} at {place} is a node of a Cluster, which redis:// does not speak to")
        if self.evicts and not may_evict:
            raise BrokerRefused(
                f"{self.name} at {place} has maxmemory-policy {self.policy}: when its memory is full it throws jobs away. "
                "Set it to noeviction, or add ?evicting=1 to the broker URL if jobs may be lost"
            )

    @property
    def evicts(self) -> bool:
        """Policies of the kind volatile-* leave keys alone that do not expire, as ours do not."""
        return self.policy.startswith("allkeys-")
