"""delay, options, bind, enqueue, and their counterparts for code without a loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest

from taskflow import (
    Backoff,
    Call,
    DeclarationError,
    EncodeError,
    EnqueueFailed,
    EnqueueOptions,
    Status,
    TaskflowError,
    configure,
    enqueue,
    enqueue_sync,
    job,
    run_sync,
)
from taskflow.app import sending as sending_module
from taskflow.app.app import default_app
from taskflow.app.loop_client import MAX_BYTES
from taskflow.app.middleware import EnqueueCall, EnqueueNext, Middleware
from taskflow.app.sending import send_call
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, blob, invoice
from tests.unit.app.watched import Watched, settle_down

# --- options --------------------------------------------------------------------------------------------------------

IN_THE_ENVELOPE: list[tuple[EnqueueOptions, str, Any]] = [
    ({"queue": "math"}, "queue", "math"),
    ({"priority": 5}, "priority", 5),
    ({"priority": -100}, "priority", -100),
    ({"max_attempts": 5}, "max_attempts", 5),
    ({"timeout": 10}, "timeout", 10.0),
    ({"timeout": timedelta(minutes=1)}, "timeout", 60.0),
    ({"keep_result": 30}, "keep_result", 30.0),
    ({"keep_result": timedelta(hours=1)}, "keep_result", 3600.0),
    ({"headers": {"trace": "1"}}, "headers", {"trace": "1"}),
    ({"tags": ("import:42", "b", "import:42")}, "tags", ("import:42", "b")),
    ({"tags": ["a"]}, "tags", ("a",)),
    ({"retry": Backoff(base=2, jitter=False)}, "retry", Backoff(base=2, jitter=False)),
]


@pytest.mark.parametrize(("options", "field", "value"), IN_THE_ENVELOPE, ids=lambda value: str(value)[:40])
async def test_an_option_reaches_the_worker(bench: Bench, options: EnqueueOptions, field: str, value: Any) -> None:
    handle = await add.options(**options).delay(1)
    lease = await bench.lease_of(handle)
    assert getattr(lease.envelope, field) == value


@pytest.mark.parametrize("after", [60, 60.0, timedelta(minutes=1)])
async def test_after_is_from_now(bench: Bench, after: float | timedelta) -> None:
    handle = await add.options(after=after).delay(1)

    assert await handle.status() is Status.SCHEDULED
    assert await bench.seconds_until_due(handle) == 60.0
    assert await bench.run_all() == []
    await bench.pass_time(60)
    await bench.run_all()
    assert await handle.result() == 2


async def test_options_make_a_copy(bench: Bench) -> None:
    """The job itself is unchanged, and so is the copy when the caller's dict changes."""
    headers = {"a": "1"}
    changed = add.options(queue="math", headers=headers)
    headers["b"] = "2"

    assert (add.queue, changed.queue) == ("default", "math")
    assert changed.options(priority=3).queue == "math"
    assert (await bench.lease_of(await changed.delay(1))).envelope.headers == {"a": "1"}


async def test_tags_of_a_call_are_added_to_those_of_the_decorator(bench: Bench) -> None:
    """Later tags of the call replace its earlier ones. The context and the job's record show all tags."""
    plain, more = await invoice.delay(), await invoice.options(tags=("a",)).options(tags=("eu", "import:42")).delay()
    [bound] = await enqueue([invoice.options(tags=["a"]).bind()])
    await bench.run_all()
    for handle, tags in ((plain, ("billing", "eu")), (more, ("billing", "eu", "import:42")), (bound, ("billing", "eu", "a"))):
        info = await handle.info()
        assert info is not None
        assert info.tags == tags
        assert tuple(await handle.result()) == tags


def test_the_decorator_and_the_call_have_ten_tags_together() -> None:
    nine = tuple(map(str, range(9)))
    with pytest.raises(ValueError, match="11 tags: a job can have at most 10"):
        invoice.options(tags=nine)
    with pytest.raises(DeclarationError, match=r"tags='a': expected a tuple of str, as in tags=\('a',\)"):
        job(name="untagged", tags=cast(Any, "a"))(lambda: None)


# --- enqueue --------------------------------------------------------------------------------------------------------


async def test_a_batch_is_of_one_mebibyte(bench: Bench) -> None:
    """A call that is larger than half of it goes alone."""
    watched = Watched(bench.broker)
    sizes = [400_000, 400_000, 400_000, 700_000, 10]
    with bench.app.using(watched.as_broker):
        await enqueue(blob.bind(bytes(size)) for size in sizes)
    assert [len(batch) for batch in watched.batches] == [2, 1, 2]
    assert all(sum(len(envelope.payload) for envelope in batch) <= MAX_BYTES for batch in watched.batches)


async def test_an_iterable_is_read_one_batch_ahead_at_most(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be endless. The next batch is gathered while one is under way, and one more call is read to find that it is full."""
    monkeypatch.setattr(sending_module, "READ_AHEAD_TIMEOUT", 60.0)  # otherwise a busy machine may leave calls for later
    watched = Watched(bench.broker)
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield add.bind(taken)

    watched.gate.clear()
    with bench.app.using(watched.as_broker):
        sending = asyncio.create_task(enqueue(endless()))
        await watched.arrived.wait()
        await settle_down()
        assert taken == 2_001
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert len(watched.batches) == 1


async def test_a_failure_carries_the_handles_so_far(bench: Bench) -> None:
    """Calls that the iterable yielded before it raised are sent."""
    watched = Watched(bench.broker)

    def calls() -> Iterator[Any]:
        yield from (add.bind(n) for n in range(1_200))
        yield add.bind("no number")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    with bench.app.using(watched.as_broker), pytest.raises(EnqueueFailed, match="x: expected int, got str") as caught:
        await enqueue(calls())

    assert isinstance(caught.value.__cause__, EncodeError)
    assert len(caught.value.handles) == sum(len(batch) for batch in watched.batches) == 1_200
    assert await caught.value.handles[-1].status() is Status.READY


async def test_a_store_that_goes_away_leaves_the_handles_so_far(bench: Bench) -> None:
    watched = Watched(bench.broker)

    def calls() -> Iterator[Any]:
        for n in range(1_500):
            watched.is_away = n > 1_000
            yield add.bind(n)

    with bench.app.using(watched.as_broker):
        configure(enqueue_timeout=1.0)
        with pytest.raises(EnqueueFailed, match=r"BrokerUnavailable: .*the store is away") as caught:
            await enqueue(calls())
    assert len(caught.value.handles) == 1_000


class Refusing(Middleware):
    """Refuses calls with an even number."""

    def __init__(self) -> None:
        self.seen = 0

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        self.seen += 1
        if call.headers.get("bad"):
            raise PermissionError("not you")
        await call_next(call)


async def test_one_bad_item_leaves_its_neighbours_alone(bench: Bench) -> None:
    """A middleware that refuses one call of a batch does not keep the others from being sent."""
    bad = add.options(headers={"bad": "yes"})
    with bench.app.using(bench.broker):
        configure(middleware=[Refusing()])
        with pytest.raises(EnqueueFailed, match="PermissionError: not you") as caught:
            await enqueue([add.bind(1), bad.bind(2), add.bind(3)])
    assert [await handle.status() for handle in caught.value.handles] == [Status.READY] * 2


# --- async generators ----------------------------------------------------------------------------------------------------


class Opened:
    """Calls from a source that must be closed."""

    def __init__(self, *, raises: bool = False) -> None:
        self.is_closed = False
        self._raises = raises

    async def calls(self) -> AsyncIterator[Call[int]]:
        try:
            for number in range(5_000):
                yield add.bind(number)
            if self._raises:
                raise RuntimeError("by design")
        finally:
            await asyncio.sleep(0)
            self.is_closed = True


async def test_a_cancelled_enqueue_closes_its_async_generator(bench: Bench) -> None:
    """It is not left to the garbage collector: what it holds open (a cursor, a file) is closed by then."""
    slow = Watched(bench.broker)
    slow.gate.clear()
    opened = Opened()
    with bench.app.using(slow.as_broker):
        sending = asyncio.create_task(enqueue(opened.calls()))
        await slow.arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert opened.is_closed


async def test_an_async_generator_that_ends_or_raises_is_closed(bench: Bench) -> None:
    opened, raising = Opened(), Opened(raises=True)
    assert len(await enqueue(opened.calls())) == 5_000
    with pytest.raises(EnqueueFailed, match="by design"):
        await enqueue(raising.calls())
    assert (opened.is_closed, raising.is_closed) == (True, True)


# --- without a loop -------------------------------------------------------------------------------------------------


async def test_an_id_of_another_job_is_never_reported_as_sent(bench: Bench) -> None:
    """Its handle would be the other job's, and the call would be lost."""
    sent, other = add.bind(1, 2), add.bind(3, 4)
    await enqueue([sent])
    other.envelope = msgspec.structs.replace(other.envelope, id=sent.envelope.id)

    with pytest.raises(EnqueueFailed, match=f"<Call {add.name} {sent.id}> was not sent: the store has another job with its id") as failed:
        await enqueue([sent, other, add.bind(5, 6)])
    assert [handle.is_new for handle in failed.value.handles] == [True, True]
    with pytest.raises(TaskflowError, match="another job with its id"):
        await send_call(default_app(), other)


async def test_enqueue_sync_reads_the_iterable_in_the_callers_thread(bench: Bench) -> None:
    """A database cursor, for example, refuses other threads; and a slow one must not hold up other senders."""
    threads: set[int] = set()

    def calls() -> Iterator[Any]:
        for n in range(1_500):
            threads.add(threading.get_ident())
            yield add.bind(n)

    def view() -> int:
        assert len(enqueue_sync(calls())) == 1_500
        return threading.get_ident()

    assert threads == set()
    assert {await asyncio.to_thread(view)} == threads


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Naming(Middleware):
    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        call.headers["tenant"] = tenant.get()
        await call_next(call)


async def test_middleware_sees_the_callers_context(bench: Bench) -> None:
    """This includes callers without a loop, and callers that share a round trip."""

    async def send(name: str) -> str:
        tenant.set(name)
        info = await (await add.delay(1)).info()
        assert info is not None
        return info.headers["tenant"]

    def view() -> str:
        tenant.set("sync")
        info = run_sync(add.delay_sync(1).info())
        assert info is not None
        return info.headers["tenant"]

    with bench.app.using(bench.broker):
        configure(middleware=[Naming()])
        assert await asyncio.gather(*(send(name) for name in ("a", "b"))) == ["a", "b"]
        assert await asyncio.to_thread(view) == "sync"
