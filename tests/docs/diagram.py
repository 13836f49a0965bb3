"""The state diagram of docs/explanation/life-of-a-job.md, drawn from the table of legal moves: `python -m tests.docs.diagram` prints it."""

from __future__ import annotations

from collections import defaultdict

from taskflow.model.record import Status
from taskflow.model.transitions import MOVES


def diagram() -> str:
    """Mermaid: an arrow for each pair of states, with the events that lead along it."""
    arrows: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for (before, event), afters in MOVES.items():
        for after in afters:
            arrows[_node(before), _node(after)].append(event.value)
    lines = [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in sorted(arrows.items(), key=_order)]
    return "\n".join(["stateDiagram-v2", *lines])


def _node(status: Status | None) -> str:
    return "[*]" if status is None else status.name


def _order(arrow: tuple[tuple[str, str], list[str]]) -> tuple[int, int]:
    names = ["[*]", *(status.name for status in Status)]
    before, after = arrow[0]
    return names.index(before), names.index(after)


if __name__ == "__main__":
    print(diagram())
