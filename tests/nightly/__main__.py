"""`python -m tests.nightly [pytest's options]`: the tests that need root and the network. Their files are called nightly_*.py here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    files = [str(file) for file in sorted(Path(__file__).parent.glob("nightly_*.py"))]
    raise SystemExit(pytest.main([*files, "-v", "-s", "--durations=0", *sys.argv[1:]]))
