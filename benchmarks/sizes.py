"""The bytes that a queued job occupies on a server, including indexes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgpack

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.processes import using
from benchmarks.report import Row, in_turn
from benchmarks.stores import Store
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory

JOBS: Final = 100_000
BATCH: Final = 1_000
PAYLOAD: Final = msgpack.packb({"data": "x" * 192}) or b""
"""A payload of 200 bytes."""


def sizes(store: Store, options: Options) -> list[Row]:
    what = f"{JOBS:,} queued, payload {len(PAYLOAD)} bytes"
    return in_turn(what, options.repeats, lambda: run_in_fastest_loop(_bytes_a_job(store)), part="bytes")


async def _bytes_a_job(store: Store) -> Mapping[str, float]:
    with store.start() as server:
        async with using(server.url) as broker:
            new_id = IdFactory()

            async def fill(jobs: int) -> None:
                for _ in range(0, jobs, BATCH):
                    await broker.enqueue([Envelope(id=new_id(), job="benchmark", payload=PAYLOAD) for _ in range(min(jobs, BATCH))])

            await fill(1)  # creates the tables or loads the script, and adds the names of queue and job
            empty = server.occupied()
            await fill(JOBS)
            return {"bytes/job": (server.occupied() - empty) / JOBS}
