"""The tables of the pages that are made from the code: `python -m tests.docs.tables` prints them."""

from __future__ import annotations

import re
from collections import defaultdict

from taskflow.model.record import Status
from taskflow.model.transitions import MOVES
from tests.docs.pages import ROOT
from tests.transactions.handles import ALL


def moves() -> str:
    """Return a row for each pair of states, with the events that lead from the one to the other."""
    events: defaultdict[tuple[Status | None, Status | None], list[str]] = defaultdict(list)
    for (before, event), afters in MOVES.items():
        for after in afters:
            events[before, after].append(event.value)
    order = [None, *Status]
    pairs = sorted(events, key=lambda pair: (order.index(pair[0]), pair[1] is None, order.index(pair[1])))
    rows = [f"| {_name(before)} | {_name(after)} | {', '.join(events[before, after])} |" for before, after in pairs]
    return "\n".join(["| from | to | by |", "| :--- | :--- | :--- |", *rows])


def _name(status: Status | None) -> str:
    return "" if status is None else status.name


def connections() -> str:
    """Return a row for each kind of connection, and a column for each test that runs with all of them."""
    names = re.findall(r"^def test_(\w+)\(play: Play\)", (ROOT / "tests/transactions/test_matrix.py").read_text(), re.MULTILINE)
    columns = [name.replace("_", " ") for name in names]
    rows = [f"| {kind} |{' ✓ |' * len(columns)}" for kind in ALL]
    return "\n".join([f"| | {' | '.join(columns)} |", f"| :--- |{' :---: |' * len(columns)}", *rows])


if __name__ == "__main__":
    print(moves(), connections(), sep="\n\n")
