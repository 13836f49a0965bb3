"""The peers' environments, created once from pinned versions in a cache outside of the repository: virtual or with node modules."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
TIMEOUT: Final = 600.0
READY: Final = "ready"


class EnvironmentFailed(Exception):
    """Raised if an environment cannot be created. The message gives the reason."""


def default_cache() -> Path:
    """Return the default cache, a folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskflow-benchmarks"


def forget(cache: Path) -> None:
    """Remove all environments from a cache."""
    shutil.rmtree(cache, ignore_errors=True)


def python_of(requirements: str, cache: Path, version: str | None = None) -> Path:
    """Return the interpreter of a virtual environment with the packages that requirements/NAME.txt pins. `version` is Python's."""
    pinned = HERE / "requirements" / f"{requirements}.txt"
    base = _interpreter(version)
    folder = cache / f"{requirements}-{_digest(pinned.read_text(), base)}"
    if not (folder / READY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([base, "-m", "venv", str(folder)])
        _run([str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--requirement", str(pinned)])
        (folder / READY).touch()
    return folder / "bin/python"


def own_python(packages: Sequence[str], cache: Path) -> Path:
    """Return the interpreter of a virtual environment with only these packages, in the versions installed here. This is what users have:
    drivers load some of the packages that tests need if they are installed."""
    pinned = [f"{name}=={version(name)}" for name in packages]
    folder = cache / f"taskflow-{_digest(*pinned, sys.version)}"
    if not (folder / READY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *pinned])
        (folder / READY).touch()
    return folder / "bin/python"


def node_folder_of(package: str, cache: Path) -> Path:
    """Return a folder with the node_modules that node/NAME/package-lock.json pins."""
    pinned = HERE / "node" / package
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise EnvironmentFailed("it needs node and npm, which are not installed")
    folder = cache / f"{package}-{_digest((pinned / 'package-lock.json').read_text(), _version_of_node())}"
    if not (folder / READY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(pinned / name, folder)
        _run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], folder)
        (folder / READY).touch()
    return folder


def version_of(requirements: str, package: str) -> str:
    """Return the pinned version of a package."""
    lines = (HERE / "requirements" / f"{requirements}.txt").read_text().lower().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package.lower()}=="))


def _interpreter(version: str | None) -> str:
    if version is None or sys.version.startswith(version):
        return sys.executable
    if found := shutil.which(f"python{version}"):
        return found
    raise EnvironmentFailed(f"it needs Python {version}, which is not installed")


def _version_of_node() -> str:
    return subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.CalledProcessError as error:
        raise EnvironmentFailed(f"{' '.join(command[:4])} failed: {(error.stderr or error.stdout).strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailed(f"{' '.join(command[:4])} took more than {TIMEOUT:.0f} s") from error
