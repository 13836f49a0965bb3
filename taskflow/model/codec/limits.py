"""How large, how deep and how many: the bounds that encoding and decoding both keep."""

from __future__ import annotations

from dataclasses import dataclass, field

DEEPEST = 200
"""No limit may allow more: each level costs up to three Python frames of the interpreter's 1,000."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one payload; what encodes within them also decodes within them.

    `size` counts bytes of the whole payload, `depth` containers inside an argument (``[[1]]`` is two deep),
    `items` values of any kind: a million empty lists fit into 1 MiB and grow sixtyfold when decoded.
    Raises ValueError for a bound below one, or a depth above `DEEPEST`.
    """

    size: int = 1 << 20
    depth: int = 64
    items: int = 1 << 17
    fewest: int = field(init=False, repr=False)
    """Bytes of a payload that is too short to break either bound: a value takes one at least."""

    def __post_init__(self) -> None:
        if min(self.size, self.depth, self.items) < 1:
            raise ValueError(f"limits must be at least 1: {self}")
        if self.depth > DEEPEST:
            raise ValueError(f"depth is {self.depth}; at most {DEEPEST} is safe")
        object.__setattr__(self, "fewest", min(self.size, self.items))
