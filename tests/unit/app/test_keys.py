"""key= and on_conflict=, as senders see them."""

from __future__ import annotations

import pytest

from taskflow import EnqueueFailed, JobCancelled, KeyConflict, enqueue
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, double
from tests.unit.app.watched import Watched

once = add.options(key="sum")


async def test_the_standing_jobs_handle_comes_back(bench: Bench) -> None:
    first = await once.delay(1, 2)
    second = await once.delay(3, 4)

    assert (first.is_new, second.is_new) == (True, False)
    assert second == first
    await bench.run_all()
    assert await second.result() == 3


async def test_a_key_is_of_its_queue_and_job(bench: Bench) -> None:
    await once.delay(1)
    others = [await once.options(queue="math").delay(1), await double.options(key="sum").delay(1), await add.options(key="other").delay(1)]
    assert all(handle.is_new for handle in others)


async def test_replace_takes_the_place_of_a_waiting_job(bench: Bench) -> None:
    old = await once.delay(1)
    new = await once.options(on_conflict="replace").delay(2)

    assert new.is_new
    with pytest.raises(JobCancelled, match=f"replaced by {new.id}") as caught:
        await old.result()
    assert caught.value.reason == f"replaced by {new.id}"
    await bench.run_all()
    assert await new.result() == 3


async def test_raise_names_the_standing_job_and_the_key(bench: Bench) -> None:
    standing = await once.delay(1)
    with pytest.raises(KeyConflict, match=f"{add.name}.*{standing.id}.*'sum'") as caught:
        await once.options(on_conflict="raise").delay(2)
    assert caught.value.job_id == standing.id


async def test_raise_in_a_batch_comes_after_it_with_both_lists(bench: Bench) -> None:
    """Those without a conflict are sent, and the caller has all handles, in order, and which of them conflicted."""
    standing = await once.delay(0)
    raising = add.options(on_conflict="raise")

    with pytest.raises(EnqueueFailed, match="1 call") as caught:
        await enqueue([raising.options(key=key).bind(n) for n, key in enumerate(("a", "sum", "b"))])

    assert caught.value.conflicts == [standing]
    assert [handle.is_new for handle in caught.value.handles] == [True, False, True]
    assert len(await bench.claim()) == 3


# --- live ---------------------------------------------------------------------------------------------------------


async def test_live_finds_a_job_by_its_key_until_it_has_ended(bench: Bench) -> None:
    assert await add.live("sum") is None
    sent = await once.delay(1)

    found = await add.live("sum")

    assert found is not None
    assert (found, found.is_new) == (sent, False)
    await bench.run_all()
    assert await found.result() == 2
    assert await add.live("sum") is None


async def test_live_looks_where_a_call_with_these_options_would(bench: Bench) -> None:
    of_queue = await once.options(queue="math").delay(1)
    of_name = await once.options(queue="math", key_scope="name").delay(1)

    assert await add.live("sum") is None
    assert await add.options(queue="math").live("sum") == of_queue
    assert await add.options(key_scope="name").live("sum") == of_name
    assert await double.live("sum") is None


async def test_live_takes_one_round_trip(bench: Bench) -> None:
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        await add.live("sum")
    assert watched.calls == {"holders": 1}


async def test_live_refuses_what_is_no_key(bench: Bench) -> None:
    with pytest.raises(ValueError, match="key= has 0 bytes"):
        await add.live("")
    with pytest.raises(TypeError, match=r"live\(\) got 7: expected a key"):
        await add.live(7)  # type: ignore[arg-type]
