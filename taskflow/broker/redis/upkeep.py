"""Decodes the reply of the script `upkeep`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.protocol import Upkept
from taskflow.broker.redis.jobs import column_of
from taskflow.broker.redis.schedules import read_offers
from taskflow.model.clock import to_seconds
from taskflow.model.ids import ID_BYTES, id_text

log: Final = logging.getLogger("taskflow")


def read_upkeep(reply: Sequence[Any], prefix: str) -> Upkept:
    """Decode the reply, and log each job that upkeep has set aside because its record cannot be read."""
    readied, reaped, released, expired, dropped, next_in, aside, *rest = reply
    for i in range(0, len(aside), 3):
        log.error(
            "the record of job %s cannot be read (%s: %s): marked as failed; its bytes are kept under %sbad:j: until it is purged",
            id_text(aside[i]),
            column_of(aside[i + 1]),
            aside[i + 2].decode(errors="replace"),
            prefix,
        )
    return Upkept(
        readied=readied,
        reaped=reaped,
        released=released,
        expired=expired,
        dropped=dropped,
        next_in=to_seconds(next_in),
        offers=read_offers(*rest[:2]) if rest and rest[0] is not None else (),
        ended=tuple(job_id for job_id in rest[2] if len(job_id) == ID_BYTES) if rest[2:] else (),
        ends_dropped=rest[3] if rest[3:] else 0,
    )
