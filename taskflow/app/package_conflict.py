"""Detects OpenStack's `taskflow`, another distribution with the same import name as taskflow-jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Every version of OpenStack's package has this file, and ours does not. If both are in one folder, they overwrite each other's files.
_THEIRS: Final = Path(__file__).parents[1] / "engines" / "__init__.py"


def advice_if_mixed() -> str | None:
    """Return advice if OpenStack's package is installed in our folder and so breaks ours, else None. This checks for a single file."""
    return advice() if _THEIRS.exists() else None


def advice() -> str | None:
    """Return advice if OpenStack's package is installed anywhere, else None."""
    from importlib.metadata import PackageNotFoundError, version  # imported here, because a starting worker doesn't need it

    try:
        theirs = version("taskflow")
    except PackageNotFoundError:
        return None
    return (
        f"OpenStack's distribution taskflow {theirs} is installed beside taskflow-jobs, and both are imported as taskflow: each overwrites "
        "the other's files. Remove it (pip uninstall taskflow), then install taskflow-jobs again with --force-reinstall --no-deps. "
        "If you need both, use two virtual environments"
    )
