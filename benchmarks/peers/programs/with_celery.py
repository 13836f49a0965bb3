"""celery on Redis, with jobs in threads, and results if the variant is "results"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from celery import Celery, chord

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, VARIANT, CannotError, SyncSending, run_sync, work_by

app = Celery("benchmark", broker=URL, backend=URL if VARIANT == "results" else None)
app.conf.update(
    task_acks_late=True,  # a killed worker's jobs are not lost
    task_ignore_result=VARIANT != "results",
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="note")
def note(number: int) -> None:
    mark(number)


@app.task(name="join")
def join(results: list[None], number: int) -> None:
    mark(number)


class CelerySending(SyncSending):
    def send(self, number: int) -> object:
        return note.delay(number)

    def ask(self, number: int) -> object:
        if VARIANT != "results":
            raise CannotError("wait for a result without a result backend")
        return note.delay(number).get(timeout=10)

    def send_flow(self, jobs: int) -> object:
        if VARIANT != "results":
            raise CannotError("await a group of jobs without a result backend")
        return chord(note.s(number) for number in range(jobs - 1))(join.s(jobs - 1))

    def send_at(self, number: int, instant: float) -> object:
        return note.apply_async((number,), eta=datetime.fromtimestamp(instant, UTC))


@contextmanager
def sending() -> Iterator[SyncSending]:
    with app.connection_for_write() as connection:
        connection.ensure_connection()
        yield CelerySending()


def work(concurrency: int) -> None:
    flags = ["--pool", "threads", "--concurrency", str(concurrency), "--loglevel", "CRITICAL"]
    alone = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    work_by("celery", "-A", "benchmarks.peers.programs.with_celery", "worker", *flags, *alone)


if __name__ == "__main__":
    run_sync(sending, work)
