"""`python -m tests.nightly [pytest's options]`: tests that need not run with every change. The files are called nightly_*.py here.

They test the test servers, run the long searches, and run the README's commands on a bare machine, which needs root and the network: `-k
"not bare"` leaves that out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    files = [str(file) for file in sorted(Path(__file__).parent.glob("nightly_*.py"))]
    patience = ("--timeout=1800", "--override-ini=faulthandler_timeout=2000")  # they build packages, and install them
    raise SystemExit(pytest.main([*files, "-v", "-s", "--durations=0", *patience, *sys.argv[1:]]))
