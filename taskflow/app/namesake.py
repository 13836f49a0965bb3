"""PyPI's `taskflow` is OpenStack's TaskFlow, and is imported by the same name as taskflow-jobs: what to do if both are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# A file that every version of theirs has, and ours has not. Where both are in one folder, each has overwritten the other's `__init__.py`.
_THEIRS: Final = Path(__file__).parents[1] / "engines" / "__init__.py"


def advice_if_mixed() -> str | None:
    """What to do if theirs is installed in our folder, where it breaks ours. Costs one look at the file system if it is not."""
    return advice() if _THEIRS.exists() else None


def advice() -> str | None:
    """What to do if theirs is installed, wherever it is."""
    from importlib.metadata import PackageNotFoundError, version  # of which a worker's start has no need

    try:
        theirs = version("taskflow")
    except PackageNotFoundError:
        return None
    return (
        f"OpenStack's distribution taskflow {theirs} is installed beside taskflow-jobs, and both are imported as taskflow: each overwrites "
        "the other's files. Remove it (pip uninstall taskflow), then install taskflow-jobs again with --force-reinstall --no-deps. "
        "If you need both, give each a virtual environment of its own"
    )
