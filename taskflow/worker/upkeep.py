"""Does the store's upkeep, as often as the store says."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerError
from taskflow.model.seams import Chance

log: Final = logging.getLogger("taskflow.worker")

LIMIT: Final = 1_000
LONGEST_PAUSE: Final = 5.0
# A job planned for soon nudges: no more often than this, in seconds, or a flood of them would be a flood of upkeep.
AT_LEAST: Final = 0.005


class Upkeep:
    def __init__(self, broker: Broker, chance: Chance) -> None:
        self._broker = broker
        self._chance = chance

    async def run(self) -> None:
        with self._broker.listen([topics.DUE]) as nudges:
            while True:
                pause = await self._once()
                if pause > 0 and await nudges.wait(pause):
                    await asyncio.sleep(AT_LEAST)

    async def _once(self) -> float:
        try:
            next_in = (await self._broker.upkeep(LIMIT)).next_in
        except BrokerError as error:
            log.warning("upkeep did not reach the broker: %s", error)
            return LONGEST_PAUSE * self._chance.random()
        # Workers that were told the same time come a little apart; what is due soon is not kept waiting for that.
        return min(next_in * (1.0 + 0.2 * self._chance.random()) if next_in >= 1.0 else next_in, LONGEST_PAUSE)
