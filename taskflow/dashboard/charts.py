"""Draws charts as SVG, without a script. Colours come from the stylesheet by class names."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from markupsafe import Markup

from taskflow.model.clock import instant_of
from taskflow.model.measures import Measure, MeasuresRecord
from taskflow.model.printable import duration, one_line
from taskflow.model.record import Record, Status

WIDTH, HEIGHT = 640, 160
LEFT, TOP, BOTTOM = 52, 10, 20  # the margins, for labels
MAX_BUCKETS: Final = 60
MINUTE, TEN_MINUTES, HOUR = 60, 600, 3_600
MAX_RUNS: Final = 50
MAX_MARKS: Final = 10  # maximum number of deploys in a chart: the newest ones
MAX_QUIET: Final = 10  # periods that a deploy may go without a run before it counts as a new one


class Bucket(msgspec.Struct, frozen=True):
    """The measures of a period that begins at `at` and lasts for `seconds`. The current bucket is shorter than the others."""

    at: datetime
    seconds: int
    measure: Measure
    is_known: bool = True  # False before the first run in the history, because perhaps nothing was recorded then

    @property
    def failed(self) -> int:
        return self.measure.number - self.measure.runs.get("succeeded", 0)


def merged(measures: Iterable[Measure]) -> Measure:
    total = Measure()
    for measure in measures:
        total.add(measure)
    return total


async def buckets(history: Sequence[MeasuresRecord], back: timedelta, *, queue: str = "", job: str = "") -> list[Bucket]:
    """Combine the periods of the last `back` into at most about 60 buckets of equal length. An empty `queue` or `job` means all. The
    event loop runs other tasks between two periods. In a thread, this could hold the GIL for 5 ms at a time, and so delay the loop."""
    longest = max((record.seconds for record in history), default=MINUTE)
    seconds = next((step for step in (MINUTE, TEN_MINUTES, HOUR) if step >= longest and back.total_seconds() / step <= MAX_BUCKETS), None)
    seconds = seconds or HOUR * -(-int(back.total_seconds()) // (HOUR * MAX_BUCKETS))
    first = int((datetime.now(UTC) - back).timestamp()) // seconds
    last = max([int(datetime.now(UTC).timestamp()), *(int(record.at.timestamp()) for record in history)]) // seconds
    found = {place: Measure() for place in range(first, min(last, first + 2 * MAX_BUCKETS) + 1)}
    for record in history:
        await asyncio.sleep(0)
        if (into := found.get(int(record.at.timestamp()) // seconds)) is not None:
            for (its_queue, its_job), measure in record.measures.items():
                if queue in ("", its_queue) and job in ("", its_job):
                    into.add(measure)
    for place in sorted(found, reverse=True)[:2]:  # workers haven't recorded this minute yet, and perhaps not the previous one
        if found[place].number:
            break
        del found[place]
    passed = [max(MINUTE, min(seconds, int(datetime.now(UTC).timestamp()) - place * seconds)) for place in found]
    starts = [instant_of(place * seconds * 1_000_000) for place in found]
    begun = min((int(record.at.timestamp()) // seconds for record in history), default=0)
    return list(map(Bucket, starts, passed, found.values(), [place >= begun for place in found]))


def deploys(measures: Iterable[Measure]) -> list[tuple[int, str]]:
    """Return the last `MAX_MARKS` positions where a deploy begins, with its name: the `MAX_QUIET` periods with runs before have none
    of its runs. Deploys in the first period are left out, because they may have begun earlier."""
    begun, former = list[tuple[int, str]](), deque[Mapping[str, int]](maxlen=MAX_QUIET)
    for place, measure in enumerate(measures):
        if measure.deploys:
            begun += [(place, name) for name in measure.deploys if former and not any(name in each for each in former)]
            former.append(measure.deploys)
    return begun[-MAX_MARKS:]


class Series(msgspec.Struct, frozen=True):
    """A line or a group of bars. `style` is its class in the stylesheet. A line has a gap where a value is None."""

    name: str
    style: str
    values: Sequence[float | None]


def rate(found: Sequence[Bucket], title: str) -> Markup:
    """Plot the number of runs that ended per minute, and the number of those that did not succeed. Unknown buckets are gaps."""
    series = [
        Series("all", "s0", [60 * bucket.measure.number / bucket.seconds if bucket.is_known else None for bucket in found]),
        Series("failed", "s1", [60 * bucket.failed / bucket.seconds if bucket.is_known else None for bucket in found]),
    ]
    return _lines(title, found, series, lambda value: f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}", "rate")


def quantiles(found: Sequence[Bucket], title: str, of: Callable[[Measure, float], float]) -> Markup:
    """Plot the median and the 95th percentile of waits or run times. The function `of` returns them, in seconds, given a measure and 0.5 or
    0.95. Buckets without runs are gaps."""
    series = [
        Series(name, style, [of(bucket.measure, share) if bucket.measure.number else None for bucket in found])
        for name, style, share in (("95 %", "s2", 0.95), ("50 %", "s0", 0.5))
    ]
    return _lines(title, found, series, duration, "seconds")


def _lines(title: str, found: Sequence[Bucket], series: Sequence[Series], label: Callable[[float], str], unit: str) -> Markup:
    most = max((value for each in series for value in each.values if value is not None), default=0.0) or 1.0
    step = (WIDTH - LEFT) / max(1, len(found) - 1)

    def paths(values: Sequence[float | None]) -> str:
        """Return the commands of an SVG path. The line is interrupted at gaps; a point between two gaps is a short line."""
        parts, is_down = [], False
        for place, value in enumerate(values):
            if value is not None:
                x, y = LEFT + place * step, TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most)
                parts.append(f"{'L' if is_down else 'M'}{x:.1f} {y:.1f}{'' if is_down else 'h.1'}")
            is_down = value is not None
        return "".join(parts)

    drawn = Markup("").join(Markup('<path class="line {}" d="{}"/>').format(each.style, paths(each.values)) for each in series)
    marks = deploys(bucket.measure for bucket in found)
    drawn += Markup("").join(_mark(LEFT + place * step, name) for place, name in marks)
    drawn += Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(LEFT, TOP, HEIGHT - BOTTOM, WIDTH)
    drawn += _label(LEFT - 6, TOP + 8, label(most), "end") + _label(LEFT - 6, HEIGHT - BOTTOM, "0", "end")
    if found:
        form = "%H:%M" if found[-1].at - found[0].at < timedelta(days=1) else "%m-%d %H:%M"
        drawn += _label(LEFT, HEIGHT - 4, f"{found[0].at:{form}}", "start") + _label(WIDTH, HEIGHT - 4, f"{found[-1].at:{form}} UTC", "end")
    note, known = Markup(), [bucket for bucket in found if bucket.is_known]
    if known and known[0] is not found[0]:
        note = Markup(' <span class="note">nothing measured before {}</span>').format(f"{known[0].at:%m-%d %H:%M} UTC")
    x = [bucket.at.timestamp() for bucket in found]
    begun = [(x[place], one_line(name, 60)) for place, name in marks]
    return _figure({"title": title, "unit": unit, "x": x, "series": series, "deploys": begun, "bins": None}, drawn, note)


def _label(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _mark(x: float, deploy: str) -> Markup:
    name = one_line(deploy, 60)
    line = Markup('<g><title>deploy {}</title><path class="deploy" d="M{:.1f} {}V{}"/>').format(name, x, TOP, HEIGHT - BOTTOM)
    side = "end" if x > WIDTH - 100 else "start"
    return line + _label(x + (-3 if side == "end" else 3), TOP + 8, one_line(deploy, 14), side) + Markup("</g>")


def _figure(plot: Mapping[str, Any], drawn: Markup, note: str = "") -> Markup:
    """Return a drawing with its title and, for several series, a key. `plot` is the data with which plots.js replaces the drawing: lines
    over time, or bars if it has "bins"."""
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, HEIGHT, plot["title"], drawn)
    series: Sequence[Series] = plot["series"]
    keys = Markup(" ").join(Markup('<span class="key {}">{}</span>').format(each.style, each.name) for each in series if len(series) > 1)
    return Markup('<live-plot data-plot="{}"><figure><figcaption>{} {}{}</figcaption>{}</figure></live-plot>').format(
        msgspec.json.encode(plot).decode(), plot["title"], keys, note, drawing
    )


def histogram(series: Mapping[str, Mapping[int, int]], title: str) -> dict[str, Any]:
    """Draw one chart of `series`, which maps names to histograms of a `Measure`. Several series are drawn as shares, side by side, with the
    last one in colour. Return the drawing, and a table of each bin's upper bound and numbers of runs; {} if there are no runs."""
    series = {name: bins for name, bins in series.items() if bins}
    if not series:
        return {}
    first, last = min(map(min, series.values())), max(map(max, series.values()))
    table = [(duration((1 << place) / 1_000_000), [bins.get(place, 0) for bins in series.values()]) for place in range(first, last + 1)]
    totals = [sum(bins.values()) or 1 if len(series) > 1 else 1 for bins in series.values()]
    shares = [[n / total for n, total in zip(counts, totals, strict=True)] for _, counts in table]
    most, step, high = max(map(max, shares)) or 1, (WIDTH - LEFT) / len(table), HEIGHT - TOP - BOTTOM
    wide, styles = max(1.0, (step - 2) / len(series)), ["old"] * (len(series) - 1) + ["new"]
    bars = Markup("").join(
        Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>below {}: {:,}</title></rect>').format(
            style, LEFT + place * step + 1 + number * wide, TOP + high * (1 - share / most), wide, high * share / most, bound, n
        )
        for place, (bound, counts) in enumerate(table)
        for number, (n, share, style) in enumerate(zip(counts, shares[place], styles, strict=True))
    )
    top = f"{most:,.0f}" if len(series) == 1 else f"{most:.0%}"
    labels = _label(LEFT - 6, TOP + 8, top, "end") + _label(LEFT, HEIGHT - 4, f"below {table[0][0]}", "start")
    if len(table) > 1:
        labels += _label(WIDTH, HEIGHT - 4, f"below {table[-1][0]}", "end")
    names = [one_line(name, 60) or "Runs" for name in series]
    plot = {
        "title": title,
        "unit": "count" if len(series) == 1 else "share",
        "x": list(range(len(table))),
        "deploys": (),
        "series": [Series(*each) for each in zip(names, styles, zip(*shares, strict=True), strict=True)],
        "bins": [bound for bound, _ in table],
    }
    heads = ["#Below", *(f"#{name}" if name == "Runs" else f"#Runs {name}" for name in names)]
    return {"drawn": _figure(plot, bars + labels), "heads": heads, "table": table}


def runs(record: Record, now: datetime) -> Markup | None:
    """Draw a timeline of a job's 50 newest runs: those that failed, and the current or last one. Return None if it hasn't run."""
    spans = [(instant_of(error.started_at or error.at), instant_of(error.at), "failed") for error in record.errors[-MAX_RUNS:]]
    began = record.started_at or (record.claimed_at if record.status is Status.RUNNING else None)
    if began is not None and not record.status.is_waiting and not any(begin == began for begin, *_ in spans):
        spans.append((began, record.ended_at or now, "running" if record.ended_at is None else str(record.status)))
    if not spans:
        return None
    first, last = min([record.created_at, *(begin for begin, *_ in spans)]), max(end for _, end, _ in spans)
    whole = max((last - first).total_seconds(), 1e-6)

    def x(at: datetime) -> float:
        return WIDTH * (at - first).total_seconds() / whole

    bars = Markup("").join(
        Markup('<rect class="run {}" x="{:.1f}" y="2" width="{:.1f}" height="10"><title>{}</title></rect>').format(
            kind, min(x(begin), WIDTH - 3), max(3.0, x(end) - x(begin)), f"{kind}, {duration((end - begin).total_seconds())}"
        )
        for begin, end, kind in spans
    )
    title = f"{len(spans):,} run{'s' if len(spans) > 1 else ''} in {duration(whole)}"
    return Markup('<svg class="runs" viewBox="0 0 {} 16" role="img" aria-label="{}"><path class="axis" d="M0 14H{}"/>{}</svg>').format(
        WIDTH, title, WIDTH, bars
    )
