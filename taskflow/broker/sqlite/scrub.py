"""Looks through all jobs, some at each upkeep, and mends rows that nothing else would find: a job whose status is none, for example."""

from __future__ import annotations

import json
from typing import Final

from taskflow.broker.sqlite import settling
from taskflow.broker.sqlite.shelf import Scrubbed, Shelf

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
        shelf.scrubbed = Scrubbed()
        return True
    place.seq = last
    return False
