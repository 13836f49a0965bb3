"""The table of moves of docs/explanation/life-of-a-job.md, made from the rules: `python -m tests.docs.moves` prints it."""

from __future__ import annotations

from collections import defaultdict

from taskflow.model.record import Status
from taskflow.model.transitions import MOVES


def table() -> str:
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


if __name__ == "__main__":
    print(table())
