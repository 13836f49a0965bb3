"""Text that would change a page if it were not escaped, and a broker that has it in every field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from taskflow.broker.admin import QueueInfo
from taskflow.model.measures import Measure, MeasuresRecord
from taskflow.model.record import Status
from tests.cli.hostile import HOSTILE, HUGE, HostileBroker

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)><a href='javascript:alert(1)'>x</a>{{ 7 * 7 }}{% raw %}</title>"


class HostileStore(HostileBroker):
    """Text that would change a page if it were not escaped, in every field, with odd numbers beside it."""

    async def history(self, since: datetime, until: datetime) -> list[MeasuresRecord]:
        measure = Measure(runs={self._text: 3}, waits={42: HUGE}, times={0: 1}, waited=HUGE, ran=HUGE)
        later = msgspec.structs.replace(measure, deploys={self._text: 3})
        first = msgspec.structs.replace(measure, deploys={"v1": 3})
        pair, now = (self._text, self._text), datetime.now(UTC)
        return [
            MeasuresRecord(at=now - timedelta(minutes=10), seconds=60, measures={pair: first}),
            MeasuresRecord(at=now, seconds=60, measures={pair: later}),
        ]

    async def queues(self) -> list[QueueInfo]:
        return [*await super().queues(), QueueInfo(name="..", is_paused=False, counts=dict.fromkeys(Status, 1))]


TEXTS = {"controls": HOSTILE, "markup": MARKUP, "both": MARKUP + HOSTILE}
