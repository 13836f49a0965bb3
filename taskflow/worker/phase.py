"""The phases of a session."""

from __future__ import annotations

from enum import IntEnum


class Phase(IntEnum):
    """A phase of a session. `WorkerSession.run` takes the session through the
    phases, and the session never returns to an earlier one. Events have these effects:

    | phase        | `finish`     | `wind_down`     | `hurry`     | the session is lost                                           |
    |--------------|--------------|-----------------|-------------|---------------------------------------------------------------|
    | WORKING      | -> FINISHING | -> WINDING_DOWN | -           | -> LOST; runs are cancelled, verdicts offered; another begins |
    | FINISHING    | -            | -> WINDING_DOWN | -           | -> LOST; the same, but no other session begins                |
    | WINDING_DOWN | -            | -               | -> STOPPING | -> LOST; runs are cancelled, verdicts offered for a while     |
    | STOPPING     | -            | -               | -           | -> LOST; as before                                            |
    | LOST         | -            | -               | -           | -                                                             |
    | ENDED        | -            | -               | -           | -                                                             |

    A worker has a phase too: WORKING, FINISHING or WINDING_DOWN. Its current session follows it.
    """

    WORKING = 0
    FINISHING = 1
    """The session claims nothing more. Its runs may take as long as they need."""

    WINDING_DOWN = 2
    """The runs have the grace time to finish."""

    STOPPING = 3
    """The grace time is over. The remaining runs are cancelled and handed back, then the session leaves."""

    LOST = 4
    """The store, or the worker itself, has declared the session dead. Other workers may run its jobs."""

    ENDED = 5
