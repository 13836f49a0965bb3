"""The operations in a caller's transaction. Enqueueing and settling take one statement, which calls a function in transactional.sql."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, cast

from taskflow.broker.engine.job import Job, claim_bytes, content_of, fence_bytes
from taskflow.broker.engine.seam import After
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.transactional import Dialect, Purpose, Row, RunStatement, Statement, drive
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.errors import StoreFull, WrongConnection
from taskflow.model.rules import MAX_DURATION
from taskflow.model.stored_values import LATEST, packed
from taskflow.model.verdict import Settled, Settlement, Succeeded

T = TypeVar("T")

Steps = Generator[Statement, Sequence[Row], T]

DESCRIBING: Final = "describe_store"

_FUNCTIONS: Final[dict[Purpose, str]] = {"enqueue": "enqueue_within", "settle": "settle_within"}
"""The functions that a role needs EXECUTE on."""


def _added_or_refused(envelope: Envelope, answer: bytes) -> Added | Refused:
    match answer[:1]:
        case b"i":
            return Refused(envelope.id, envelope.id, "id")
        case b"c":
            return Refused(envelope.id, envelope.id, "clash")
        case b"k":
            return Refused(envelope.id, answer[1:], "key")
        case _:
            return Added(envelope.id, answer[1:] or None)


def name_in(description: str) -> str:
    """Return the store's name from the answer of describe_store()."""
    name: str = json.loads(description)["store"]
    return name


class PostgresOperation(Generic[T]):
    """See `taskflow.broker.transactional.CallersOperation`."""

    def __init__(self, steps: Callable[[], Steps[T]]) -> None:
        self.steps = steps

    def run(self, run: RunStatement, /) -> T:
        return drive(self.steps(), run)


class PostgresTransactional:
    """The operations of one store. `name` is the store's own name: see describe_store() in transactional.sql."""

    dialect: Dialect = "postgresql"

    def __init__(self, place: str, schema: str, name: str, wall: Callable[[], int | None], capacity: int | None) -> None:
        self.place = place
        self._schema = schema
        self._name = name
        self._wall = wall
        self._capacity = capacity

    def check(self, purpose: Purpose = "enqueue") -> PostgresOperation[None]:
        return PostgresOperation(lambda: self._check(_FUNCTIONS[purpose]))

    def enqueue(self, envelopes: Sequence[Envelope]) -> PostgresOperation[list[Added | Refused]]:
        return PostgresOperation(lambda: self._enqueue(envelopes))

    def settle(self, settlement: Settlement) -> PostgresOperation[Settled]:
        return PostgresOperation(lambda: self._settle(settlement))

    def _check(self, function: str) -> Steps[None]:
        yield from self._check_rights(function)
        [(description,)] = yield Statement(f'SELECT "{self._schema}".{DESCRIBING}()')
        if name_in(_text(description)) != self._name:
            raise WrongConnection(
                f"the connection is to a different database than the broker's, {self.place}. Its schema {self._schema!r} has a store too, "
                "but not this one: use a connection to the broker's database"
            )

    def _check_rights(self, function: str) -> Steps[None]:
        """Raise WrongConnection if the function is missing or not permitted, because calling it would make the transaction fail."""
        [(rights,)] = yield Statement(_RIGHTS.format(function), (self._schema,))
        if _text(rights) != "granted":
            problem = {"missing": "has no such store", "denied": "does not let the connection's role use it"}[_text(rights)]
            raise WrongConnection(
                f"the broker uses {self.place}, but the connection's database {problem}: use a connection to the broker's database, as "
                f"a role that has USAGE on the schema {self._schema!r} and EXECUTE on its function {function}(text)"
            )

    def _enqueue(self, envelopes: Sequence[Envelope]) -> Steps[list[Added | Refused]]:
        if not envelopes:
            return []
        request: dict[str, Any] = {"wall": self._wall()}
        calls = list(map(_call, envelopes))
        if self._capacity is None and len(calls) == 1 and _is_ready(envelopes[0], calls[0]):
            request["one"] = calls[0]
        else:
            request |= {"capacity": self._capacity, "jobs": calls}
        answer = yield from self._call(_FUNCTIONS["enqueue"], json.dumps(request, default=_bytea))
        if answer["answers"] is None:
            return [Added(envelope.id) for envelope in envelopes]
        answers = [bytes.fromhex(each) for each in answer["answers"]]
        return [_added_or_refused(*pair) for pair in zip(envelopes, answers, strict=True)]

    def _settle(self, settlement: Settlement) -> Steps[Settled]:
        try:
            fence = fence_bytes(settlement.epoch, *claim_bytes(settlement.claim))
        except OverflowError:  # no store could have issued it
            return Settled.STALE
        progress = settlement.progress
        request: dict[str, Any] = {
            "wall": self._wall(),
            "id": settlement.id,
            "fence": fence,
            "ran_for": to_microseconds(settlement.ran_for),
            "keep_for": to_microseconds(min(settlement.keep_for, MAX_DURATION)),
            "result": content_of(cast(Succeeded, settlement.verdict).result, settlement.arguments),
            "progress": None if progress is None else packed([progress.fraction, progress.note]),
        }
        if settlement.follow_ups:
            request["follow_ups"] = list(map(_call, settlement.follow_ups))
        answer = yield from self._call(_FUNCTIONS["settle"], json.dumps(request, default=_bytea))
        return Settled(answer["settled"])

    def _call(self, function: str, request: str) -> Steps[Any]:
        """Call one of the functions, and return its decoded answer. Raises StoreFull if it refuses the call."""
        [(text,)] = yield Statement(f'SELECT "{self._schema}".{function}(%s)', (request,))
        answer = json.loads(_text(text))
        if "refused" in answer:
            raise StoreFull(answer["message"])
        return answer


_RIGHTS: Final = """\
SELECT coalesce(pg_catalog.min(CASE WHEN pg_catalog.has_schema_privilege(pronamespace, 'USAGE') AND \
pg_catalog.has_function_privilege(p.oid, 'EXECUTE') THEN 'granted' ELSE 'denied' END), 'missing') FROM pg_catalog.pg_proc AS p \
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) pronamespace \
WHERE proname OPERATOR(pg_catalog.=) '{}' AND nspname OPERATOR(pg_catalog.=) %s"""


_OF_READY: Final = frozenset({"status", "flags", "priority", "queue", "job", "due_at", "awaits", "expires_at"})
"""The fields of the header that add_ready_within() accepts."""


def _is_ready(envelope: Envelope, call: Mapping[str, Any]) -> bool:
    has_ties = call["flags"] or call["awaits"] or envelope.joins
    return not (has_ties or envelope.after or envelope.at is not None) and _OF_READY.issuperset(call.keys() - _NOT_IN_HEADER)


_NOT_IN_HEADER: Final = frozenset({"id", "content", "sent", "tags", "key", "replaces", "after"})


def _call(envelope: Envelope) -> dict[str, Any]:
    """Return a call as calls_in() reads it: the header and the bodies of the job, and options that have no column."""
    put = Job.of_envelope(envelope, 0).to_put()
    header = {name: value for name, value in put.header.items() if name != "due_at"}
    after = {name: int(header.pop(name)) for name, value in put.header.items() if type(value) is After and name in header}
    if envelope.at is not None:
        header["due_at"] = min(envelope.at, LATEST)
    elif envelope.after:
        after["due_at"] = to_microseconds(envelope.after)
    fields = header | {
        "id": envelope.id,
        "content": envelope.payload,
        "sent": put.sent,
        "after": after or None,
        "tags": envelope.tags or None,
        "key": envelope.key,
        "replaces": envelope.on_conflict is OnConflict.REPLACE or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytea(value: Any) -> str:
    assert isinstance(value, bytes), value
    return f"\\x{value.hex()}"
