"""Ends a session at the broker: waits for the answers to its last settlements and hands back its leases."""

from __future__ import annotations

import asyncio

from taskflow.broker.protocol import Broker
from taskflow.model.errors import SessionLost
from taskflow.model.session import Beat, Session
from taskflow.worker.events import Events, NotLeft, VerdictsLost
from taskflow.worker.lease_table import LeaseTable


class Leaving:
    """Every wait takes at most `within` seconds. May be done again after a cancellation."""

    def __init__(self, broker: Broker, session: Session, lease_table: LeaseTable, events: Events, within: float) -> None:
        self.has_left = False
        self._broker = broker
        self._session = session
        self._lease_table = lease_table
        self._events = events
        self._within = within

    async def until_answered(self) -> None:
        """Until the broker has answered every settlement that was offered."""
        while any(holding.is_offered for holding in self._lease_table.all()):
            await self._lease_table.wait_for_change()

    def tell_of_untold(self) -> None:
        if untold := tuple(held.lease for held in self._lease_table.all() if held.is_offered and held.started is not None):
            self._events.tell(VerdictsLost(untold, "the broker has not answered by the worker's end"))

    async def leave(self) -> None:
        """Hand back what is still leased."""
        if (error := await self._tell()) is not None:
            self._events.tell(NotLeft(self._session.name, str(error) or "no answer in time", self._session.ttl))

    async def give_up(self) -> None:
        """After a loss that the store may not know of: a claim that was on its way may have leased jobs to the session meanwhile."""
        await self._tell()

    async def _tell(self) -> Exception | None:
        if self.has_left:
            return None
        try:
            async with asyncio.timeout(self._within):
                await self._broker.beat(Beat(session=self._session.id, leaving=True))
        except SessionLost:  # it holds nothing any more
            pass
        except Exception as error:
            return error
        self.has_left = True
        return None
