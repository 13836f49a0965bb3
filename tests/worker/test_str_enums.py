"""Members of a str enum as queue, key, header or name: every store shows the text itself."""

from __future__ import annotations

from enum import Enum

from taskflow import Worker, job
from taskflow.broker.protocol import Broker
from taskflow.model.ids import parse_id


class Word(str, Enum):  # noqa: UP042  # whose text is "Word.HIGH", unlike that of a StrEnum
    HIGH = "high"
    NAME = "tests.str_enums.named"
    BEFORE = "tests.str_enums.before"


@job(name=Word.NAME, aliases=(Word.BEFORE,), queue=Word.HIGH)
async def named() -> str:
    return "done"


def test_what_is_declared_is_plain() -> None:
    """A plain str in place of the member, in the job and in each envelope."""
    call = named.options(key=Word.HIGH, headers={Word.HIGH: Word.HIGH})
    envelope = call.bind().envelope
    [(header, value)] = envelope.headers.items()
    for text in (named.name, *named.aliases, named.queue, call.key, envelope.queue, envelope.job, header, value):
        assert type(text) is str
    assert (str(named.name), str(envelope.queue), str(value)) == (Word.NAME.value, "high", "high")


async def test_a_store_shows_the_text(broker: Broker) -> None:
    """In the handle's info, in the record, and in the list of queues; a worker of that queue runs the job."""
    handle = await named.options(queue=Word.HIGH, headers={Word.HIGH: Word.HIGH}).delay()
    info = await handle.info()
    assert info is not None
    [record] = await broker.read([parse_id(handle.id)])
    assert record is not None
    [queue] = await broker.admin.queues()
    for text in (info.queue, record.queue, record.job, *record.headers, *record.headers.values(), queue.name):
        assert type(text) is str
    assert (str(info.queue), str(queue.name), record.headers) == ("high", "high", {"high": "high"})
    async with Worker(queues=[Word.HIGH]):
        assert await handle.result(10) == "done"
