"""Looks through all jobs, some at each upkeep, and mends rows that nothing else would find: a job whose status is none, for example."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Final

from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.shelf import Scrubbed, Shelf

FEW_NAMES: Final = 256
"""Names of jobs that are kept, used or not: dropping one and adding it again would cost more than to keep it."""

SCRUBBED_AT_ONCE: Final = 500
"""Jobs that one call looks at, in about 2 ms."""


def scrub(shelf: Shelf) -> bool:
    """Look at the next jobs. True at the end of all of them; the next call begins again."""
    place = shelf.scrubbed
    row = shelf.connection.execute(shelf.sql["some_jobs"], (place.seq, SCRUBBED_AT_ONCE)).fetchone()
    last, number, unsound, orphans, names = row
    for seq in json.loads(unsound):
        shelf.job_by_seq(seq)  # mended on the way
    for seq in json.loads(orphans):
        job = shelf.job_by_seq(seq)
        if job is not None and job.claim is not None:
            settling.hand_back(shelf, job, counts=False)
    place.names.update(json.loads(names))
    if number < SCRUBBED_AT_ONCE:
        _drop_names(shelf, place.names)
        shelf.connection.execute(shelf.sql["drop_oversized"])
        shelf.scrubbed = Scrubbed()
        return True
    place.seq = last
    return False


def _drop_names(shelf: Shelf, used: Set[object]) -> None:
    """Drop what no job is called any more, as after a purge. All jobs have been looked at by now, new ones last."""
    numbers = {number for (number,) in shelf.connection.execute(shelf.sql["job_name_numbers"])}
    unused = numbers - used
    if len(numbers) <= FEW_NAMES or not unused:
        return
    shelf.connection.execute(shelf.sql["drop_job_names"], (json.dumps(sorted(unused)),))
    shelf.connection.execute(shelf.sql["count_drop_of_names"])
    shelf.job_names.forget()
