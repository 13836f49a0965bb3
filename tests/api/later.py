"""What of the promise belongs to later issues, by name. Whoever builds one takes its line away here, and puts it into its block."""

from __future__ import annotations

from typing import Final, NamedTuple


class Later(NamedTuple):
    """`text` stands in the promise word by word. `absent` is Python that does not work yet: it fails, or the line is overdue."""

    text: str
    owner: str
    absent: str


LATER: Final = (
    Later("[`debounce=5` (last wins), `throttle=60` (first wins)]", owner="debounce and throttle", absent="add.options(debounce=5)"),
    Later("[`debounce, throttle`]", owner="debounce and throttle", absent="add.options(throttle=60)"),
    *(
        Later(f"`{url}`", owner=owner, absent=f"SCHEMES[{url.partition('://')[0]!r}]")
        for url, owner in (
            ("redis+sentinel://h1:26379,h2:26379/mymaster", "Sentinel"),
            ("redis+cluster://h1:7000,h2:7001", "Cluster"),
        )
    ),
    Later("`taskflow move sqlite:///taskflow.db redis://...`", owner="move", absent="a_parser().commands['move']"),
    Later("[`async for event in handle.events()`", owner="events", absent="JobHandle.events"),
    Later("[`raise RateLimited(retry_after=30)`]", owner="limits", absent="taskflow.RateLimited"),
)
