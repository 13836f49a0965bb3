"""Jobs under everything at once: `python -m tests.stores.redis.storm --jobs 20000 --seed 1`.

Worker processes and a sender reach the server by way of a proxy that loses replies, commands and connections, delays and garbles, while
somebody kills all connections at random. Then the weather clears, and all is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

import taskflow
from tests.cli.processes import Running, Shell
from tests.stores.redis.killer import Killer
from tests.stores.redis.scene import Scene, verb_of
from tests.stores.scene import elapsed_since
from tests.support.proxy import BLACKHOLE, DROP_COMMAND, DROP_REPLY, GARBLE, PASS, Command, Fate, Kind, Proxy, delay, delay_reply
from tests.support.servers import HOST, RedisServer
from tests.support.waiting import until

ENOUGH: Final = 50
"""Replies of each of these verbs that a whole storm drops at least."""

VERBS: Final = ("add", "claim", "succeed", "apply")

_TASKS: Final = """
import os
from taskflow import job

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@job(name="tests.stores.note", keep_result=3600)
async def note(number: int, padding: bytes = b"") -> None:
    os.write(ledger, b"%d\\n" % number)
"""

_FATES: Final[dict[Fate, float]] = {
    DROP_REPLY: 0.2,
    DROP_COMMAND: 0.05,
    delay(0.01): 0.05,
    delay_reply(0.01): 0.05,
    delay_reply(0.05): 0.01,
    GARBLE: 0.01,
    BLACKHOLE: 0.0005,
}
"""How often each befalls a command. A beat's reply is dropped half the time: there are few of them."""

_BEAT_DROPPED: Final = 0.5


class Weather:
    """A proxy's rule. `counts`: how often each fate has befallen each verb."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[tuple[str, Kind]] = Counter()
        self.is_fair = True
        self._chance = random.Random(seed)

    def __call__(self, command: Command) -> Fate:
        verb = verb_of(command)
        fate = PASS if self.is_fair else self._fate(verb)
        self.counts[verb, fate.kind] += 1
        return fate

    def dropped(self, verb: str) -> int:
        """Its replies that were dropped after it had taken effect."""
        return self.counts[verb, Kind.DROP_REPLY]

    def _fate(self, verb: str) -> Fate:
        draw = self._chance.random()
        if verb == "beat":
            return DROP_REPLY if draw < _BEAT_DROPPED else PASS
        if verb == "CLIENT":  # what the driver says of itself on every new connection: hardly one would come to its first command
            return PASS
        for fate, share in _FATES.items():
            draw -= share
            if draw < 0:
                return fate
        return PASS


class Report(msgspec.Struct, frozen=True):
    """What came of a storm. `runs` and `distinct` are by the jobs' own ledger, `totals` by the store's events."""

    jobs: int
    seconds: float
    killed: int
    weather: dict[str, dict[str, int]]
    runs: int
    distinct: int
    told: dict[str, int]
    totals: dict[str, int]
    waiting: dict[str, int]

    def check(self) -> None:
        """Each job done, none settled twice, none left."""
        assert self.distinct == self.jobs, "each has run"
        assert self.told == {"succeeded": self.jobs}, "each is done"
        assert self.totals["succeed"] == self.totals["enqueue"] == self.jobs, "none was added or settled twice"
        assert self.waiting == {}, "none is left"

    def dropped(self, verb: str) -> int:
        return self.weather.get(verb, {}).get(Kind.DROP_REPLY.value, 0)

    def __str__(self) -> str:
        lines = [
            f"{self.jobs} jobs in {self.seconds:.1f} s; {self.killed} connections killed",
            *(f"  {verb}: " + ", ".join(f"{fate} {number}" for fate, number in fates.items()) for verb, fates in self.weather.items()),
            f"runs {self.runs}, of {self.distinct} jobs; the store says {self.told}, waiting {self.waiting}; events {self.totals}",
        ]
        return "\n".join(lines)


async def storm(jobs: int, *, seed: int, workers: int, least_dropped: int = 0) -> Report:
    """`jobs` jobs, and more until `least_dropped` replies of each verb have been dropped."""
    began_at = time.monotonic()
    weather = Weather(seed)
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        proxy = stack.enter_context(Proxy(HOST, server.port, rule=weather))
        shell = stack.enter_context(_shell(proxy.url()))
        async with Scene(server, proxy.url()) as scene:
            taskflow.configure(enqueue_timeout=60)
            running = [shell.worker("--ttl", "6") for _ in range(workers)]
            weather.is_fair = False
            with Killer(server, seed) as killer:
                await _send(scene, jobs, weather, seed, least_dropped)
                await until(lambda: _has_run(shell, len(scene.handles), running), 30 + jobs / 50)
            weather.is_fair = True
            proxy.cut_all()
            await until(lambda: _all_succeeded(scene), 60)
            return Report(
                jobs=len(scene.handles),
                seconds=elapsed_since(began_at),
                killed=killer.killed,
                weather=_by_verb(weather),
                runs=len(shell.ledger()),
                distinct=len(set(shell.ledger())),
                told=await scene.told(scene.handles),
                totals=dict(await scene.totals()),
                waiting=await scene.waiting(),
            )


async def _send(scene: Scene, jobs: int, weather: Weather, seed: int, least_dropped: int) -> None:
    """One by one and many at once, until there are enough."""
    chance = random.Random(seed)
    while len(scene.handles) < jobs or min(map(weather.dropped, VERBS)) < least_dropped:
        first = len(scene.handles)
        batch = range(first, first + min(chance.choice((1, 2, 5, 50)), max(1, jobs - first)))
        if chance.random() < 0.5:
            await scene.send(batch)
        else:
            handles = await asyncio.gather(*(scene.note.delay(number) for number in batch))
            scene.handles.update(zip(batch, handles, strict=True))


async def _all_succeeded(scene: Scene) -> bool:
    return await scene.told(scene.handles) == {"succeeded": len(scene.handles)}


def _has_run(shell: Shell, jobs: int, workers: list[Running]) -> bool:
    for worker in workers:
        assert worker.process.poll() is None, f"a worker has ended: {worker.said}"
    return len(set(shell.ledger())) == jobs


def _by_verb(weather: Weather) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (verb, kind), number in sorted(weather.counts.items(), key=lambda item: (item[0][0], item[0][1].value)):
        found.setdefault(verb, {})[kind.value] = number
    return found


@contextmanager
def _shell(url: str) -> Iterator[Shell]:
    with tempfile.TemporaryDirectory() as folder, Shell(Path(folder)) as shell:
        shell.environment["TASKFLOW_BROKER"] = url
        shell.write("tasks.py", _TASKS)
        yield shell


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stores.redis.storm", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    given = parser.parse_args()
    report = asyncio.run(storm(given.jobs, seed=given.seed, workers=given.workers, least_dropped=ENOUGH))
    print(report)
    report.check()
    assert all(report.dropped(verb) >= ENOUGH for verb in VERBS)


if __name__ == "__main__":
    main()
