"""The groups in which `taskflow --help` lists the commands, and the example and the link in the help of each command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "run and send jobs": {
        "worker": "taskflow worker app.tasks --queues mail=3,default=1",
        "send": "taskflow send app.tasks.charge --args '{\"order_id\": 7}'",
        "check": "taskflow check app.tasks",
    },
    "look at jobs, queues and workers": {
        "status": "taskflow status --watch",
        "jobs": "taskflow jobs --status failed --queue mail",
        "explain": "taskflow explain 01a20e69-e073-7000-9acc-49abe1cd4c9a",
        "failures": "taskflow failures --queue mail",
        "queues": "taskflow queues",
        "workers": "taskflow workers",
        "metrics": "taskflow metrics --json",
        "audit": "taskflow audit --limit 10",
    },
    "act on jobs, queues and schedules": {
        "retry": "taskflow retry --queue mail --error timeout",
        "cancel": 'taskflow cancel --tag import:42 --reason "wrong file"',
        "purge": "taskflow purge --ended-before 30d",
        "pause": "taskflow pause mail",
        "resume": "taskflow resume mail",
        "schedules": "taskflow schedules trigger nightly",
    },
    "look after the store": {
        "doctor": "taskflow doctor",
        "migrate": "taskflow migrate --plan",
    },
    "learn more": {
        "help": "taskflow help jobs",
        "demo": "taskflow demo --limit 100",
        "completion": "taskflow completion bash > ~/.local/share/bash-completion/completions/taskflow",
    },
}
"""The commands of each group, the most used first, each with an example."""

OF_SCHEDULES: Final[Mapping[str, str]] = {
    "list": "taskflow schedules list nightly",
    "trigger": "taskflow schedules trigger nightly",
    "pause": 'taskflow schedules pause nightly --reason "until the import is repaired"',
    "resume": "taskflow schedules resume nightly",
    "remove": "taskflow schedules remove nightly",
    "backfill": "taskflow schedules backfill nightly --from 2026-01-01 --to 2026-02-01 --dry-run",
    "next": 'taskflow schedules next "0 9 * * MON-FRI" --tz Europe/Paris',
}
"""The actions of `taskflow schedules`, each with an example."""

_SECTIONS: Final[Mapping[str, str]] = {"pause": "pause-and-resume", "resume": "pause-and-resume"}


def epilog_of(command: str, action: str | None = None) -> str:
    """Return the end of the help of a command, or of an action of `taskflow schedules`: an example, and its section in the reference."""
    example = OF_SCHEDULES[action] if action else next(group[command] for group in GROUPS.values() if command in group)
    return f"example:\n  {example}\n\nmore: docs/reference/cli.md#taskflow-{_SECTIONS.get(command, command)}"
