# ruff: noqa: E501, E702, F841  # the blocks stand as they were promised
from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from taskflow import enqueue, enqueue_sync, job, run_sync, send
from tests.api.define import WelcomeEmail, add, send_welcome_email


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@job(name="api.send.charge")
async def charge(order_id: int) -> int:
    return order_id


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


async def block_2_3(session: AsyncSession, order: Order) -> None:
    # block 2.3
    async with session.begin():                                              # the job exists if and only if this commits
        session.add(order)
        await session.flush()                                                 # order.id is known from here on
        await charge.options(connection=session).delay(order.id)              # SQLAlchemy (a)sync, psycopg, asyncpg, sqlite3, Django
    # end of block


async def block_2_4() -> None:
    # block 2.4
    handle = await send("app.tasks.charge", order_id=7)                      # by name, where importing it would be a circle or another image: JobHandle[Any]; checked where it is known, else parks
    call = add.options(tags=("import:42",)).bind(1, 2); print(call.id)       # the id is known before it is sent
    # end of block
