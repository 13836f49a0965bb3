"""`python -m tests.long [pytest's options]`: the tests that take too long for every run. Their files are called long_*.py here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    files = [str(file) for file in sorted(Path(__file__).parent.glob("long_*.py"))]
    for_as_long_as_they_take = ("-o", "timeout=0", "-o", "faulthandler_timeout=0")
    raise SystemExit(pytest.main([*files, "-v", "--durations=0", *for_as_long_as_they_take, *sys.argv[1:]]))
