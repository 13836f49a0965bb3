"""The phases of a session."""

from __future__ import annotations

from enum import IntEnum


class Phase(IntEnum):
    """A session never goes back to an earlier phase. What an event does in each phase:

    | phase        | `finish`       | `wind_down`         | the session is lost                                 |
    |--------------|----------------|---------------------|-----------------------------------------------------|
    | WORKING      | -> FINISHING   | -> WINDING_DOWN     | -> LOST; `on_lost` is called, which leads to `abandon` |
    | FINISHING    | goes on        | -> WINDING_DOWN     | -> LOST; `on_lost` is called, which leads to `abandon` |
    | WINDING_DOWN | -              | goes on             | -> LOST; the grace time ends, runs are cancelled    |
    | LOST         | returns False  | settles and leaves  | -                                                   |
    """

    WORKING = 0
    FINISHING = 1
    WINDING_DOWN = 2
    LOST = 3
