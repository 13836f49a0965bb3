"""Looks through all jobs, some at each upkeep, and mends rows that nothing else would find: a job whose status is none, for example."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Final

from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.transitions import Scrubbed, Transitions

FEW_NAMES: Final = 256
"""Names of jobs that are kept, used or not: dropping one and adding it again would cost more than to keep it."""

SCRUBBED_AT_ONCE: Final = 500
"""Jobs that one call looks at, in about 2 ms."""


def scrub(transitions: Transitions) -> bool:
    """Look at the next jobs. True at the end of all of them; the next call begins again."""
    place = transitions.scrubbed
    row = transitions.connection.execute(transitions.sql["some_jobs"], (place.seq, SCRUBBED_AT_ONCE)).fetchone()
    last, number, unsound, orphans, names = row
    for seq in json.loads(unsound):
        transitions.job_by_seq(seq)  # mended on the way
    for seq in json.loads(orphans):
        job = transitions.job_by_seq(seq)
        if job is not None and job.claim is not None:
            settling.hand_back(transitions, job, counts=False)
    place.names.update(json.loads(names))
    if number < SCRUBBED_AT_ONCE:
        _drop_names(transitions, place.names)
        transitions.connection.execute(transitions.sql["drop_oversized"])
        transitions.scrubbed = Scrubbed()
        return True
    place.seq = last
    return False


def _drop_names(transitions: Transitions, used: Set[object]) -> None:
    """Drop what no job is called any more, as after a purge. All jobs have been looked at by now, new ones last."""
    numbers = {number for (number,) in transitions.connection.execute(transitions.sql["job_name_numbers"])}
    unused = numbers - used
    if len(numbers) <= FEW_NAMES or not unused:
        return
    transitions.connection.execute(transitions.sql["drop_job_names"], (json.dumps(sorted(unused)),))
    transitions.connection.execute(transitions.sql["count_drop_of_names"])
    transitions.job_names.forget()
