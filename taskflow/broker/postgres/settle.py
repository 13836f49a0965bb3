"""Packs settlements into arguments for the functions in settle.sql, and calls those functions."""

from __future__ import annotations

from collections.abc import Sequence, Set
from struct import Struct
from typing import Any, Final, cast

from taskflow.broker.postgres.enqueue import envelope_columns
from taskflow.broker.postgres.errors import was_held_up
from taskflow.broker.postgres.function_caller import FunctionCaller
from taskflow.broker.postgres.packing import collapse_equal, empty_if_unset, is_possible_claim, pack_progress, utf8
from taskflow.broker.script_values import SUCCEEDED, parts_of
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId
from taskflow.model.errors import BrokerError
from taskflow.model.ids import ID_BYTES
from taskflow.model.rules import LONGEST
from taskflow.model.stored_values import packed
from taskflow.model.verdict import Completed, RunError, Settled, Settlement, Succeeded, is_plain_success, parts_sent

_ANSWERS: Final = {True: Settled.OK, False: Settled.STALE, None: Settled.COMMITTED}


async def settle(broker: FunctionCaller, settlements: Sequence[Settlement]) -> list[Settled]:
    """Settle plain successes first, then the rest."""
    if not settlements:
        return []
    done = await _succeed(broker, settlements)
    left = [settlement for settlement in settlements if settlement.id not in done]
    answers = iter(await _settle_others(broker, left) if left else ())
    return [Settled.OK if settlement.id in done else next(answers) for settlement in settlements]


async def _succeed(broker: FunctionCaller, settlements: Sequence[Settlement]) -> Set[bytes]:
    """Settle plain successes in a separate transaction, so that no other settlement delays them. Return the ids of the settled jobs."""
    plain = [settlement for settlement in settlements if _can_be_all_at_once(settlement)]
    ids = {settlement.id for settlement in plain}
    if not plain or len({settlement.id for settlement in settlements}) < len(settlements):
        return frozenset()
    try:
        [row] = await broker.call("succeed", broker.wall(), *success_columns(plain))
    except BrokerError as error:
        if was_held_up(error):
            return frozenset()  # _settle_others() finds out which ones are held up
        raise
    done = ids if row["done"] is None else set(row["done"])
    if done:
        broker.tell_ended(done, are_awaited=row["are_awaited"])
    return done


async def _settle_others(broker: FunctionCaller, settlements: Sequence[Settlement]) -> list[Settled]:
    """Settle all in one call. If another program has locked the rows or keys
    of some, report those as held up, and settle the rest without waiting."""
    if not any(isinstance(settlement.verdict, Completed) for settlement in settlements):  # the transaction of one may still be open
        answers = await _together(broker, settlements)
        if answers is not None:
            return answers
    held_up = await _held_up(broker, settlements)
    free = [settlement for settlement in settlements if settlement.id not in held_up]
    rest = iter(await _together(broker, free) or [Settled.HELD_UP] * len(free))
    return [Settled.HELD_UP if settlement.id in held_up else next(rest) for settlement in settlements]


async def _together(broker: FunctionCaller, settlements: Sequence[Settlement]) -> list[Settled] | None:
    """Settle in one call. Return None if another program's transaction is holding up any of the settlements."""
    if not settlements:
        return []
    try:
        row = await broker.call_one("settle", broker.wall(), *settlement_columns(settlements))
    except BrokerError as error:
        if was_held_up(error):
            return None
        raise
    return [_ANSWERS[answer] for answer in row["answers"]]


async def _held_up(broker: FunctionCaller, settlements: Sequence[Settlement]) -> Set[bytes]:
    """Return the ids of the settlements for which another program has locked the job's row or the key of a follow-up."""
    following = [(each.id, envelope.key) for each in settlements for envelope in each.follow_ups if envelope.key is not None]
    ids, keys = [job_id for job_id, _ in following], [key for _, key in following]
    return {row["held_up"] for row in await broker.call("held_up", [each.id for each in settlements], ids, keys)}


def _can_be_all_at_once(settlement: Settlement) -> bool:
    """Return True if the SQL function `succeed`, which splits one value into ids of fixed length, can settle this settlement."""
    return is_plain_success(settlement) and len(settlement.id) == len(settlement.claim.session) == ID_BYTES


def is_possible(settlement: Settlement) -> bool:
    """Return True if a store could have issued the settlement's fence."""
    return 0 <= settlement.epoch < 1 << 31 and is_possible_claim(settlement.claim, settlement.claim.session)


def success_columns(settlements: Sequence[Settlement]) -> list[Any]:
    """Return the arguments of succeed() (see settle.sql): ids, fences, ran_for, keep_for, results.

    Ids and fences are each joined into one long value, because the driver takes a third of a microsecond for each element of an array, and
    twice that for text or bytes.
    """
    return [
        b"".join([settlement.id for settlement in settlements]),
        b"".join([fence_of(settlement.epoch, settlement.claim) for settlement in settlements]),
        [to_microseconds(settlement.ran_for) for settlement in settlements],
        collapse_equal([kept_for(settlement) for settlement in settlements]),
        collapse_equal([cast(Succeeded, settlement.verdict).result for settlement in settlements]),
    ]


def kept_for(settlement: Settlement) -> int:
    """Return how long to keep the job if it succeeds, in microseconds."""
    return to_microseconds(min(settlement.keep_for, LONGEST))


def fence_of(epoch: int, claim: ClaimId) -> bytes:
    """Return the form of a fence in `jobs.settled`."""
    return _EPOCH.pack(epoch) + claim.session + _CLAIM.pack(claim.request, claim.number)


_EPOCH: Final = Struct(">i")
_CLAIM: Final = Struct(">qi")


def settlement_columns(settlements: Sequence[Settlement]) -> list[list[Any]]:
    """Return the arguments of settle() (see settle.sql): the columns of the settlements, those of the follow-ups, progress and causes. A
    follow-up's first column is the position of its settlement, from 1."""
    rows = [_settlement_row(settlement) for settlement in settlements]
    follow_ups = [(place, envelope) for place, settlement in enumerate(settlements, 1) for envelope in settlement.follow_ups]
    return [
        *([list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(11)]),
        [place for place, _ in follow_ups],
        *envelope_columns([envelope for _, envelope in follow_ups]),
        empty_if_unset([pack_progress(settlement.progress) for settlement in settlements]),
        empty_if_unset([settlement.cause for settlement in settlements]),
    ]


def _settlement_row(settlement: Settlement) -> tuple[Any, ...]:
    kind, value, error, after = parts_of(settlement.verdict)
    return (
        settlement.id,
        settlement.epoch,
        *settlement.claim,
        kind,
        to_microseconds(settlement.ran_for),
        kept_for(settlement) if kind == SUCCEEDED else 0,
        _content(value),
        None if error is None else _pack_error(error),
        after,
    )


def _content(value: bytes | str | bool | None) -> bytes | None:
    if isinstance(value, str):
        return utf8(value)
    return value if isinstance(value, bytes) else b"" if value else None


def _pack_error(error: RunError) -> bytes:
    """Pack an error as an array of eight, without the three that the store adds: worker, start and end."""
    return b"\x98" + b"".join(map(packed, parts_sent(error)))
