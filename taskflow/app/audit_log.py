"""Records what operators do in the audit log of the store."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from taskflow.app.bulk_actions import CallVerb
from taskflow.broker.console import View
from taskflow.model.audit import Act
from taskflow.model.errors import BrokerError, BrokerRefused
from taskflow.model.printable import shown

log: Final = logging.getLogger("taskflow.operate")

RECORD_TIMEOUT: Final = 5.0
"""Seconds that adding an act to the log may take."""


class ActionProgress:
    """The progress of an act. The code that acts keeps it up to date."""

    def __init__(self) -> None:
        self.affected = 0
        self.stopped = ""


def this_operator() -> str:
    """Return the user of this process and its machine, as "ada@web-1"."""
    from getpass import getuser

    try:
        user = getuser()
    except (OSError, KeyError, ImportError):  # the user has no name, as in many containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@asynccontextmanager
async def recorded(
    call: CallVerb, verb: str, *, by: str | None, reason: str, names: Sequence[str] = (), which: Mapping[str, str] | None = None
) -> AsyncIterator[ActionProgress]:
    """Record the act that the block does, once, at its end.

    An act that is interrupted, or that the store breaks off, is recorded with what it had done. One that has affected nothing is not
    recorded, unless it was broken off: then it may have affected something.
    """
    doing = ActionProgress()
    try:
        yield doing
    except BaseException as error:
        if not isinstance(error, Exception):
            doing.stopped = "interrupted"
        elif isinstance(error, BrokerError) and not isinstance(error, BrokerRefused):  # otherwise the act was refused
            doing.stopped = f"{type(error).__name__}: {error}"
        raise
    finally:
        if doing.affected or doing.stopped:
            act = Act(
                id=os.urandom(16),
                by=by or this_operator(),
                verb=verb,
                names=tuple(names),
                named=len(names),
                which=which or {},
                affected=doing.affected,
                stopped=doing.stopped,
                reason=reason,
            )
            await _record(call, act)


async def _record(call: CallVerb, act: Act) -> None:
    """Add the act to the log, even in a task that is being cancelled. If that fails, log an error: the act itself is done."""
    import anyio

    async def add() -> None:
        try:
            with anyio.fail_after(RECORD_TIMEOUT, shield=True):
                await call(lambda broker: broker.console.record_act(act))
        except (BrokerError, TimeoutError) as error:
            what = f"{act.verb}, which affected {act.affected:,}"
            why = error or f"the store did not answer within {RECORD_TIMEOUT:g} s"
            log.error("could not record an act in the audit log (%s): %s", what, why)

    try:
        await add()
    except anyio.get_cancelled_exc_class():  # asyncio's own cancel() heeds no shield
        await add()  # a store that has the act already does not add it again
        raise


def selection(view: View) -> dict[str, str]:
    """Return the conditions of a filter as text, for the log."""
    conditions = msgspec.structs.asdict(view) | {"status": ", ".join(view.statuses)}
    del conditions["statuses"]
    return {name: _condition(value) for name, value in conditions.items() if value not in (None, "") and value is not False}


def _condition(value: object) -> str:
    """Return one condition of a filter as text. A tuple is the name of a header, and its value if one is asked for."""
    if isinstance(value, tuple):
        return "=".join(part for part in value if part is not None)
    return "yes" if value is True else f"{value:g} s" if isinstance(value, float) else str(value)


def check_operator(by: object, reason: object) -> None:
    """Raise TypeError if one of the arguments is not text."""
    for name, value in (("by", by), ("reason", reason)):
        if not isinstance(value, str) and not (name == "by" and value is None):
            raise TypeError(f"{name}={shown(value)}: expected a str")
