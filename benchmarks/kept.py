"""The results of workloads, stored as JSON: one file each, with the conditions of the measurement."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.catalogue import PEERS
from benchmarks.postgres_server import the_version
from benchmarks.report import Row
from tests.support.servers import the_redis_binary

PACKAGES: Final = ("redis", "hiredis", "asyncpg", "msgpack", "msgspec", "anyio", "uvloop")


@dataclass(frozen=True)
class Kept:
    """The results of a workload. `conditions` are keyed by the names that readers see."""

    workload: str
    title: str
    conditions: Mapping[str, str]
    rows: Sequence[Row]

    def row(self, part: str, figure: str) -> Row | None:
        return next((row for row in self.rows if row.part == part and row.figure == figure), None)


def keep(kept: Kept, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kept.workload}.json").write_text(json.dumps(asdict(kept), indent=1, ensure_ascii=False) + "\n")


def read_all(folder: Path) -> dict[str, Kept]:
    """Return all stored results, by workload."""
    found = (_read(path) for path in sorted(folder.glob("*.json")))
    return {kept.workload: kept for kept in found}


def _read(path: Path) -> Kept:
    told: dict[str, Any] = json.loads(path.read_text())
    return Kept(told["workload"], told["title"], told["conditions"], [Row(**row) for row in told["rows"]])


def conditions_of(workload: str, repeats: int) -> dict[str, str]:
    """Return the commit, date, machine and versions, including the server's if there is one."""
    told = {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} CPUs, {_memory()} GiB, {_model()}, {platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "repeats": str(repeats),
    }
    if workload.startswith("redis-"):
        told["server"] = _output(str(the_redis_binary().path), "--version").split(" sha")[0] + ", without persistence"
    elif workload.startswith("postgres-"):
        told["server"] = f"{the_version()}, fsync and synchronous_commit on"
    else:
        told["SQLite"] = f"{sqlite3.sqlite_version}, each commit synced"
    return told


def peers_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the versions of the peers that took part."""
    names = {name for row in rows for name in (*row.peers, *row.failures)}
    return {peer.name: peer.version for peer in PEERS if peer.name in names}


def _commit() -> str:
    changed = "" if not _output("git", "status", "--porcelain", "--untracked-files=no", "--", "taskflow") else ", with changes"
    return (_output("git", "rev-parse", "--short=10", "HEAD") or "unknown") + changed


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
