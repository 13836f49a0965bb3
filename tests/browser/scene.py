"""A shop at noon: the jobs, workers, failures, schedules and history of an application whose new deploy has brought an error."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from taskflow import Cron, Every, job, operate, schedules
from taskflow.model.clock import ManualClock, instant_of
from taskflow.model.codec import Limits, encode_by_name
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.fingerprint import cause_of
from taskflow.model.ids import id_text
from taskflow.model.measures import Measure, pack_measures
from taskflow.model.session import Report, Session
from taskflow.model.verdict import Failed, Progress, Retried, RunError, Settlement
from tests.support.schedules import Process
from tests.support.verdicts import cancelled, settlement, succeeded
from tests.support.world import World

OLD, NEW = "2026.11.27-1", "2026.11.30-2"
"""The deploys before and after the error came."""

RATES: Final = {("mail", "shop.mail.welcome"): 90, ("imports", "shop.imports.import_row"): 40, ("payments", "shop.payments.charge"): 25}
"""Runs a minute."""

STEP: Final = 10.0
"""Seconds between heartbeats."""

FRAMES = 'Traceback (most recent call last):\n  File "/srv/shop/{file}", line {line}, in {function}\n    {code}\n{error}\n'


def _error(kind: str, message: str, file: str, line: int, function: str, code: str) -> RunError:
    shown = f"{kind.removeprefix('builtins.')}: {message}"
    return RunError(kind, message, FRAMES.format(file=file, line=line, function=function, code=code, error=shown))


NO_SKU = _error("builtins.KeyError", "'sku'", "shop/imports.py", 88, "import_row", 'product = catalogue[row["sku"]]')
TIMED_OUT = _error(
    "httpx.ConnectTimeout", "timed out after 10 s", "shop/payments.py", 41, "charge", "answer = await client.post(url, json=order)"
)
REFUSED = _error(
    "smtplib.SMTPRecipientsRefused",
    "550 5.1.1 no such user: 'karl@example.org'",
    "shop/mail.py",
    23,
    "send",
    "server.send_message(message)",
)


@job(name="shop.reports.monthly", queue="reports")
async def monthly() -> None: ...


@job(name="shop.carts.remind", queue="mail")
async def remind() -> None: ...


@job(name="shop.stock.reconcile")
async def reconcile() -> None: ...


class Scene(NamedTuple):
    """The ids of some jobs, as text. `waiting` is one whose queue no worker takes."""

    ready: str
    waiting: str
    scheduled: str
    running: str
    failed: str


def payload(**arguments: Any) -> bytes:
    return encode_by_name(arguments, job="work", limits=Limits())


class _Shop:
    """The workers, and what they do."""

    def __init__(self, world: World, seed: int = 7) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.leases = dict[Session, list[Lease]]()
        self.minute = world.clock.wall() // 60_000_000
        self.is_late = False
        """The new deploy is there."""

    async def worker(self, name: str, deploy: str, concurrency: int, *queues: str) -> Session:
        jobs = ("shop.mail.welcome", "shop.mail.receipt", "shop.imports.import_row", "shop.payments.charge", "shop.reports.monthly")
        session = await self.world.a_session(name, deploy=deploy, concurrency=concurrency, queues=queues, jobs=jobs)
        self.leases[session] = []
        return session

    async def until(self, then: datetime) -> None:
        """Let time pass. Workers send heartbeats, and record their measures each minute."""
        clock = self.world.clock
        while (left := (then - instant_of(clock.wall())).total_seconds()) > 0:
            clock.advance(min(left, STEP))
            await self.beat()
            if clock.wall() // 60_000_000 > self.minute:
                await self.world.broker.admin.record_measures(self.minute.to_bytes(16), pack_measures(self._measures(self.minute)))
                await self.world.upkeep()
                self.minute = clock.wall() // 60_000_000

    async def beat(self, *reports: Report) -> None:
        for session, leases in self.leases.items():
            held = {lease.claim for lease in leases}
            await self.world.beat(session, *leases, reports=[report for report in reports if report.claim in held])

    def _measures(self, minute: int) -> dict[tuple[str, str], Measure]:
        """Return what the workers have measured: runs that come and go, and waits of imports that rise with the new deploy."""
        measures = {}
        for number, (pair, rate) in enumerate(RATES.items()):
            is_worse = self.is_late and pair[0] == "imports"
            runs = max(1, round(rate * (1 + 0.4 * math.sin(minute / 50 + number)) + self.chance.gauss(0, rate / 9)))
            bad = round(runs * (0.3 if is_worse else 0.02))
            waits = Counter(round(self.chance.gauss(15 + number + 3 * is_worse, 1.4)) for _ in range(runs))
            times = Counter(round(self.chance.gauss(17 + number, 1.1)) for _ in range(runs))
            verdicts, deploys = (
                {"succeeded": runs - bad, "failed": bad},
                {OLD: runs - runs // 2, NEW: runs // 2} if is_worse else {OLD: runs},
            )
            measures[pair] = Measure(runs=verdicts, waits=waits, times=times, waited=runs, ran=runs, deploys=deploys)
        return measures

    async def take(self, session: Session, queue: str, **fields: Any) -> Lease:
        """Let the worker begin a job."""
        await self.world.add(queue=queue, **fields)
        self.world.clock.advance(0.02)
        [lease] = await self.world.claim(session, [queue], 1)
        self.leases[session].append(lease)
        await self.beat(Report(lease.claim, 0.0))
        return lease

    async def end(self, session: Session, settled: Callable[[Lease], Settlement], seconds: float, queue: str, **fields: Any) -> Lease:
        """Let the worker run a job for so long, and end it."""
        lease = await self.take(session, queue, **fields)
        await self.until(instant_of(self.world.clock.wall()) + timedelta(seconds=seconds))
        await self.world.settle(msgspec.structs.replace(settled(lease), ran_for=seconds))
        self.leases[session].remove(lease)
        return lease

    def failing(self, error: RunError, deploy: str) -> Callable[[Lease], Settlement]:
        verdict = Failed(error)
        return lambda lease: settlement(lease, verdict, cause=cause_of(verdict, deploy))


def clock_for(now: datetime, minutes: int) -> ManualClock:
    """Return the clock of a world that is empty, so many minutes before `now`."""
    return ManualClock(now - timedelta(minutes=minutes))


async def fill(world: World, now: datetime, *, rows: int = 12) -> Scene:
    """Fill a world whose clock is that of `clock_for`. In the end it stands at `now`. `rows` jobs of an import have failed by then."""
    shop = _Shop(world)
    web = [await shop.worker(f"web-{number}:{4_100 + number}", OLD, 8, "mail", "default") for number in (1, 2)]
    old = await shop.worker("batch-1:977", OLD, 4, "imports", "payments", "reports")
    await shop.until(now - timedelta(minutes=12))
    await _earlier(shop, old, web[0])
    await shop.until(now - timedelta(minutes=9))
    failed = await _deploy(shop, rows)
    await shop.until(now - timedelta(seconds=130))
    ids = await _present(shop, web, old, now)
    ran = Report(ids["running"].claim, 96.0, Progress(0.62, "31 of 50 pages"))
    await _amend(world)
    await shop.until(now - timedelta(seconds=3))
    await shop.beat(ran)
    world.clock.advance(3.0)
    shown = {name: id_text(lease.envelope.id if isinstance(lease, Lease) else lease.id) for name, lease in ids.items()}
    return Scene(**shown, failed=id_text(failed.envelope.id))


async def _earlier(shop: _Shop, old: Session, web: Session) -> None:
    for number in range(4):
        order = payload(order=88_100 + number, card="4111 1111 1111 1111", token="hunter2")
        timed_out = shop.failing(TIMED_OUT, OLD)
        await shop.end(old, timed_out, 10.2, "payments", job="shop.payments.charge", payload=order, headers={"tenant": "eu"})
    await shop.end(web, shop.failing(REFUSED, OLD), 0.3, "mail", job="shop.mail.welcome", payload=payload(user="karl"))
    for number in range(6):
        user, seconds = payload(user=f"user-{number}"), 0.05 + 0.2 * shop.chance.random()
        await shop.end(web, lambda lease: succeeded(lease, keep_for=86_400.0), seconds, "mail", job="shop.mail.welcome", payload=user)
    withdrawn = payload(order=88_104)
    await shop.end(
        web, lambda lease: cancelled(lease, "the order was withdrawn"), 1.0, "default", job="shop.orders.ship", payload=withdrawn
    )


async def _deploy(shop: _Shop, rows: int) -> Lease:
    """The new deploy comes, whose imports fail. Returns the last of them."""
    ended = list[Lease]()
    new = await shop.worker("batch-2:1204", NEW, 4, "imports")
    shop.is_late = True
    for number in range(rows):
        row = {"job": "shop.imports.import_row", "payload": payload(row=1_204 + number, file="autumn.csv"), "tags": ("import:42",)}
        ended += [await shop.end(new, shop.failing(NO_SKU, NEW), 0.4 + shop.chance.random(), "imports", **row)]
    return ended[-1]


async def _present(shop: _Shop, web: list[Session], old: Session, now: datetime) -> dict[str, Any]:
    world = shop.world
    hat = payload(image="hat.png", width=320)
    thumbnails = [await world.add(queue="thumbnails", job="shop.images.thumbnail", payload=hat) for _ in range(5)]
    await shop.until(now - timedelta(seconds=100))
    running = await shop.take(old, "reports", job="shop.reports.monthly", payload=payload(month="2026-11"), timeout=600.0)

    def retried(lease: Lease) -> Settlement:
        return settlement(lease, Retried(TIMED_OUT, 90.0))

    await shop.end(old, retried, 10.1, "payments", job="shop.payments.charge", payload=payload(order=88_107))
    await shop.until(now - timedelta(seconds=40))
    await shop.take(web[0], "mail", job="shop.mail.receipt", payload=payload(order=88_109))
    await shop.take(old, "imports", job="shop.imports.import_row", payload=payload(row=1_300), tags=("import:42",))
    scheduled = await world.add(queue="mail", job="shop.mail.reminder", after=10_800.0, payload=payload(cart=5))
    await shop.until(now - timedelta(seconds=12))
    ready = list[Envelope]()
    for number in range(9):
        name, tags = ("shop.mail.receipt", ()) if number % 3 else ("shop.mail.welcome", ("campaign:advent",))
        order = payload(order=88_110 + number, email="eve@example.org")
        ready += [await world.add(queue="mail", job=name, payload=order, tags=tags)]
        world.clock.advance(0.4)
    return {"ready": ready[-1], "waiting": thumbnails[0], "scheduled": scheduled, "running": running}


async def _amend(world: World) -> None:
    """Schedules, and what people have done."""
    await schedules.put("reports.monthly", monthly.bind(), Cron("0 6 1 * *", tz="Europe/Paris"))
    await schedules.put("carts.remind", remind.bind(), Every(900.0))
    await schedules.put("stock.reconcile", reconcile.bind(), Cron("30 2 * * *", tz="Europe/Paris"))
    await schedules.pause("stock.reconcile", by="grace@ops-1", reason="the warehouse counts by hand this week")
    worker = Process(world)
    while await worker.upkeep() <= 0:
        pass
    await operate.pause("thumbnails", by="grace@ops-1", reason="the image store is full")
    await operate.retry(job="shop.mail.welcome", status="failed", by="ada@laptop", reason="the address was corrected")
