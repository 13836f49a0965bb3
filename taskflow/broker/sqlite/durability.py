"""What a verb needs of the disk."""

from __future__ import annotations

from enum import IntEnum


class Durability(IntEnum):
    """The strictest verb of a group decides for all of it."""

    READ = 0
    """Nothing is written: no write lock is taken."""

    NORMAL = 1
    """The log is written and not flushed: claims, beats, upkeep. A killed process loses nothing by it. A power cut may lose the last of
    them, never what comes before a flush: then a job is READY again that was leased, and its worker, gone with the power, can settle
    nothing, for the next claim has another claim id. So a flush would buy nothing, at several times the cost."""

    FULL = 2
    """The log is flushed before the answer: settlements, cancellations, what an operator does. What was answered has happened."""

    FULL_AND_NEW = 3
    """Flushed likewise; takes in new jobs, and so is refused when room runs out, while all others go on."""
