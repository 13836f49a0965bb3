"""The table of connections of docs/how-to/send-in-a-transaction.md, made from the names of the tests: `python -m tests.docs.connections`
prints it."""

from __future__ import annotations

import re
from typing import Final

from tests.docs.pages import ROOT
from tests.transactions.handles import ALL

_TESTS: Final = ROOT / "tests/transactions/test_matrix.py"


def table() -> str:
    """Return a row for each kind of connection, and a column for each test that runs with all of them."""
    names = re.findall(r"^def test_(\w+)\(play: Play\)", _TESTS.read_text(), re.MULTILINE)
    columns = [name.replace("_", " ") for name in names]
    rows = [f"| {kind} |{' ✓ |' * len(columns)}" for kind in ALL]
    return "\n".join([f"| | {' | '.join(columns)} |", f"| :--- |{' :---: |' * len(columns)}", *rows])


if __name__ == "__main__":
    print(table())
