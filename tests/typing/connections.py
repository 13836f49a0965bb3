"""Drivers' connections for `connection=`, in both checkers, with the drivers installed. Nothing imports this file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import aiosqlite
import asyncpg
import psycopg
from asyncpg.pool import PoolConnectionProxy
from django.db import connection as of_django
from psycopg2.extensions import connection as Psycopg2Connection  # noqa: N812
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlmodel import Session as SqlModelSession
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncSqlModelSession

from taskflow import JobContext, RunsStatement, enqueue, enqueue_sync
from tests.typing.positive import add


def of_drivers(of_psycopg: psycopg.Connection, of_psycopg2: Psycopg2Connection, of_sqlite: sqlite3.Connection) -> None:
    for_psycopg = add.options(connection=of_psycopg)
    for_psycopg.delay_sync(1)
    add.options(connection=of_psycopg2).delay_sync(1)
    add.options(connection=of_sqlite).delay_sync(1)
    add.options(connection=of_django).delay_sync(1)
    enqueue_sync([add.bind(1)], connection=of_psycopg)
    enqueue_sync([add.bind(1)], connection=of_sqlite)


async def of_async_drivers(
    of_asyncpg: asyncpg.Connection,
    of_pool: PoolConnectionProxy,
    of_psycopg: psycopg.AsyncConnection,
    of_aiosqlite: aiosqlite.Connection,
    pool: asyncpg.Pool,
) -> None:
    await add.options(connection=of_asyncpg).delay(1)
    await add.options(connection=of_pool).delay(1)
    await add.options(connection=of_psycopg).delay(1)
    await add.options(connection=of_aiosqlite).delay(1)
    async with pool.acquire() as connection, connection.transaction():
        await enqueue([add.bind(1)], connection=connection)


def of_sqlalchemy(
    connection: Connection, session: Session, scoped: scoped_session[Session], of_sqlmodel: SqlModelSession, make: sessionmaker[Session]
) -> None:
    add.options(connection=connection).delay_sync(1)
    add.options(connection=session).delay_sync(1)
    add.options(connection=scoped).delay_sync(1)
    add.options(connection=of_sqlmodel).delay_sync(1)
    with make.begin() as begun, create_engine("").begin() as of_engine:
        enqueue_sync([add.bind(1)], connection=begun)
        enqueue_sync([add.bind(1)], connection=of_engine)


async def of_async_sqlalchemy(
    ctx: JobContext,
    connection: AsyncConnection,
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    of_sqlmodel: AsyncSqlModelSession,
) -> None:
    await add.options(connection=connection).delay(1)
    await add.options(connection=session).delay(1)
    await add.options(connection=scoped).delay(1)
    await add.options(connection=of_sqlmodel).delay(1)
    await ctx.complete_in(session, result="receipt")


class Mine:
    def run_statement(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return []


class MineAwaited:
    def __init__(self, below: asyncpg.Connection) -> None:
        self._below = below

    async def run_statement(self, statement: str, parameters: Sequence[Any]) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._below.fetch(statement.replace("%s", "$1"), *parameters)
        return rows


def of_others(below: asyncpg.Connection) -> None:
    of_mine_awaited: RunsStatement = MineAwaited(below)
    add.options(connection=Mine()).delay_sync(1)
    add.options(connection=of_mine_awaited)
    add.options(connection=MineAwaited(below))


def of_nothing(
    engine: Engine,
    make: sessionmaker[Session],
    pool: asyncpg.Pool,
    cursor: psycopg.Cursor,
) -> None:
    add.options(connection=engine)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection=make)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection=pool)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection=cursor)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection=Session)  # E: mypy[arg-type] pyright[reportArgumentType]
    enqueue_sync([add.bind(1)], connection=engine)  # E: mypy[arg-type] pyright[reportArgumentType]
