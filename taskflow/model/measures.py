"""Measures: counts of runs, and histograms of how long jobs waited and ran. Workers collect them, and stores keep them as history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from taskflow.model.clock import MICROSECONDS

MAX_PAIRS: Final = 500
"""The maximum number of pairs of queue and job that are counted separately. Further pairs are counted as `OTHER`."""

OTHER: Final = ("_other", "_other")

MAX_DEPLOYS: Final = 20

MAX_BIN: Final = 42
"""The highest bin, for durations of more than about 25 days."""

MAX_BYTES: Final = 1 << 20
"""The maximum size of packed measures in bytes. Larger measures are not read."""

MAX_COUNT: Final = (1 << 63) - 1
"""The highest count or sum. Higher values are rejected, and sums stop there."""

_Bin = Annotated[int, msgspec.Meta(ge=0, le=MAX_BIN)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class Measure(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The runs of one job in one queue.

    `runs`      how many runs ended with each verdict, by its name: "succeeded", "retried" and so on
    `waits`     a histogram of the time between a job's due time and its claim: bin N counts the times of less than 2 ** N microseconds
                that no lower bin counts
    `times`     a histogram of the run times
    `waited`    the sum of the waits in microseconds
    `ran`       the sum of the run times in microseconds
    `deploys`   in the history: how many runs each deploy had (TASKFLOW_DEPLOY of the worker), for the first `MAX_DEPLOYS` of a period
    """

    runs: dict[str, _Count] = {}
    waits: dict[_Bin, _Count] = {}
    times: dict[_Bin, _Count] = {}
    waited: _Count = 0
    ran: _Count = 0
    deploys: dict[str, _Count] = {}

    @property
    def number(self) -> int:
        return sum(self.runs.values())

    def time_of(self, share: float) -> float:
        """Return the time in seconds within which the given share of the runs ended: at 0.95, 95 % were no slower. The result is up to
        twice the exact time; 0.0 if there are no runs."""
        return _quantile(self.times, share)

    def wait_of(self, share: float) -> float:
        """Like `time_of`, for the time that jobs waited."""
        return _quantile(self.waits, share)

    def add(self, other: Measure) -> None:
        for mine, others in ((self.runs, other.runs), (self.waits, other.waits), (self.times, other.times)):
            into: dict[Any, int] = mine
            for name, n in others.items():
                into[name] = min(into.get(name, 0) + n, MAX_COUNT)
        for deploy, n in other.deploys.items():
            if deploy in self.deploys or len(self.deploys) < MAX_DEPLOYS:
                self.deploys[deploy] = min(self.deploys.get(deploy, 0) + n, MAX_COUNT)
        self.waited = min(self.waited + other.waited, MAX_COUNT)
        self.ran = min(self.ran + other.ran, MAX_COUNT)


Measures = dict[tuple[str, str], Measure]
"""Measures by queue and job."""


class MeasuresRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The measures of all workers over a period.

    `at`        when the period begins
    `seconds`   the length of the period: a minute, ten minutes or an hour
    `measures`  the measures by queue and job
    """

    at: datetime
    seconds: int
    measures: Measures


def _quantile(bins: Mapping[int, int], share: float) -> float:
    left = share * sum(bins.values())
    for at, n in sorted(bins.items()):
        left -= n
        if left <= 0 < n:
            return (1 << at) / 1e6
    return 0.0


def measure_of(name: str, waits: Sequence[int], seconds: Sequence[float]) -> Measure:
    """Return the measure of runs that all ended with the verdict `name`. `waits` are the times that the jobs waited, in microseconds;
    negative ones count as 0. `seconds` are the run times."""
    if min(waits) < 0:  # the store's clock was set back
        waits = [max(0, wait) for wait in waits]
    times = [round(each * MICROSECONDS) for each in seconds]
    return Measure(runs={name: len(times)}, waits=_binned(waits), times=_binned(times), waited=sum(waits), ran=sum(times))


def _binned(many: Sequence[int]) -> dict[int, int]:
    bins = dict[int, int]()
    for bits, n in Counter(map(int.bit_length, many)).items():
        bins[min(MAX_BIN, bits)] = bins.get(min(MAX_BIN, bits), 0) + n
    return bins


def add_up(into: Measures, others: Mapping[tuple[str, str], Measure]) -> Measures:
    """Add measures to `into`, and return it. Once it has `MAX_PAIRS` pairs, further ones are added to `OTHER`."""
    for pair, measure in others.items():
        if (known := into.get(pair)) is None:
            pair = pair if len(into) < MAX_PAIRS else OTHER
            known = into.setdefault(pair, Measure())
        known.add(measure)
    return into


def sum_of(many: Iterable[Mapping[tuple[str, str], Measure]]) -> Measures:
    into = Measures()
    for each in many:
        add_up(into, each)
    return into


def pack_measures(measures: Mapping[tuple[str, str], Measure]) -> bytes:
    return msgspec.msgpack.encode([[*pair, measure] for pair, measure in measures.items()])


def unpack_measures(packed: bytes | None) -> Measures:
    """Decode packed measures. Return an empty dict if they can't be read, because another program may have written them."""
    try:
        return {(queue, job): measure for queue, job, measure in _decode(packed or b"")} if len(packed or b"") <= MAX_BYTES else {}
    except (msgspec.MsgspecError, UnicodeError):
        return {}


_decode: Final = msgspec.msgpack.Decoder(list[tuple[str, str, Measure]]).decode
