"""Packs envelopes into arguments for the scripts in enqueue.lua."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from taskflow.broker.redis.fields import AS_SENT
from taskflow.broker.redis.large_payloads import is_large, reference_to
from taskflow.broker.redis.packing import Item, pack
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, is_plain, pack_extras

MOST_PLAIN: Final = 2_000
"""The maximum number of envelopes in one call of the script `enqueue`. The script
adds them all with one command, and Lua passes at most 8,000 values to a command."""

_MOST_EXTRAS: Final = 0xFFFF


# --- plain jobs: the script `enqueue` -----------------------------------------------------------------------------


class PlainJobs(NamedTuple):
    packed: bytes
    large: list[Envelope]
    """Envelopes whose payloads must be sent ahead: see `large_payloads`."""


def pack_plain(envelopes: Sequence[Envelope]) -> PlainJobs | None:
    """Pack envelopes for the script `enqueue`. Return None if it cannot add every
    one of them: `add` then adds them all, so that they keep their order."""
    if not 0 < len(envelopes) <= MOST_PLAIN:
        return None
    runs, last_kind, large = list[list[Any]](), None, list[Envelope]()
    places: dict[str, int] = {}
    for envelope in envelopes:
        if not is_plain(envelope):
            return None
        kind = (envelope.queue, envelope.job, envelope.priority)
        if kind != last_kind:
            last_kind = kind
            queue, job = "q:" + envelope.queue, "j:" + envelope.job
            runs.append([places.setdefault(queue, len(places) + 1), places.setdefault(job, len(places) + 1), envelope.priority])
        extras, payload = pack_extras(envelope) or b"", envelope.payload
        if len(extras) > _MOST_EXTRAS:
            return None
        if is_large(payload):
            large.append(envelope)
            payload = reference_to(payload)
        runs[-1] += (envelope.id, b"%b%b%b%b" % (len(extras).to_bytes(2), extras, len(payload).to_bytes(4), payload))
    return PlainJobs(pack([list(places), [envelope.id for envelope in large], *runs]), large)


# --- jobs of any kind: the script `add` ---------------------------------------------------------------------------


class Texts(dict[str, int]):
    """Numbers the names of queues and jobs in a call from 1. Each is sent once; jobs refer to it by its number."""

    def __missing__(self, name: str) -> int:
        place = self[name] = len(self) + 1
        return place


def pack_envelopes(envelopes: Sequence[Envelope]) -> bytes:
    """Pack envelopes for the script `add`. Large payloads must be sent ahead: see `large_payloads`."""
    texts = Texts()
    items = [job_item(envelope, texts, apart=is_large(envelope.payload)) for envelope in envelopes]
    return pack([list(texts), items, [envelope.id for envelope in envelopes if is_large(envelope.payload)]])


def job_item(envelope: Envelope, texts: Texts, *, apart: bool = False) -> Item:
    """Return the item that `add_job` in enqueue.lua expects. If `apart` is True, it holds a reference in place of the payload."""
    return (
        envelope.id,
        texts["q:" + envelope.queue],
        texts["j:" + envelope.job],
        to_microseconds(envelope.after) if envelope.after else 0,
        envelope.at if envelope.at is not None else False,
        False if envelope.expires is None else to_microseconds(envelope.expires),
        int(envelope.on_conflict),
        reference_to(envelope.payload) if apart else envelope.payload,
        pack_extras(envelope) or False,
        b"".join(envelope.joins) or False,
        *_as_sent(envelope),
    )


_as_sent: Final = attrgetter(*AS_SENT)
