"""`python -m tests.protocol_model [--full | --deep]`."""

from __future__ import annotations

import argparse
import sys

from tests.protocol_model.report import DEEP, FULL, REGULAR, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol_model", description="Search the lease protocol for violations.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="larger worlds, about a minute and a half")
    which.add_argument("--deep", action="store_true", help="the largest world, some minutes and 1 GB")
    options = parser.parse_args()
    return 0 if report(DEEP if options.deep else FULL if options.full else REGULAR) else 1


if __name__ == "__main__":
    sys.exit(main())
