# ruff: noqa: E501, F841  # the blocks stand as they were promised
from __future__ import annotations

from taskflow import enqueue, enqueue_sync, run_sync
from tests.api.define import WelcomeEmail, add, send_welcome_email


# fmt: off
async def block_2_1() -> None:
    # block 2.1
    handle = await send_welcome_email.delay(WelcomeEmail("user_123", "a@example.com"))        # JobHandle[None]

    await send_welcome_email.options(max_attempts=5, after=60).delay(WelcomeEmail("user_123", "a@example.com"))     # seconds or timedelta; at= an aware datetime
    await add.options(queue="math", priority=5, key="sum:1:2", expires=3600, timeout=10, keep_result=300).delay(1, 2)

    handles = await enqueue(add.bind(n, n) for n in range(10_000))           # any iterable, streamed in bounded batches; add.options(...).bind(...) too
    # end of block


# block 2.2
def view() -> None:                                                       # Flask, Django, a script, a notebook
    handle = add.delay_sync(1, 2)
    enqueue_sync(add.bind(n, n) for n in range(10))
    print(run_sync(handle.result(timeout=10)))
# end of block
