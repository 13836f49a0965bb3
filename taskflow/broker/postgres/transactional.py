"""The verbs in a caller's transaction: each is one statement, which calls a function in transactional.sql."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Generic, TypeVar, cast

from taskflow.broker.postgres.columns import SENT
from taskflow.broker.postgres.enqueue import columns_of_calls
from taskflow.broker.postgres.packing import pack_progress
from taskflow.broker.postgres.settle import fence_of, is_possible, kept_for
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.script_values import added_or_refused
from taskflow.broker.transactional import Dialect, Purpose, Row, RunStatement, Statement, drive
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, pack_extras
from taskflow.model.errors import BrokerRefused, KeyBusy, StoreFull, TaskflowError, WrongConnection
from taskflow.model.verdict import Settled, Settlement, Succeeded

T = TypeVar("T")

Steps = Generator[Statement, Sequence[Row], T]

DESCRIBING: Final = "describe_store"

_FUNCTIONS: Final[dict[Purpose, str]] = {"enqueue": "enqueue_within", "settle": "settle_within"}
"""The functions that a role needs EXECUTE on."""


def name_in(told: str) -> str:
    """Return the store's name from the answer of describe_store()."""
    name: str = json.loads(told)["store"]
    return name


class PostgresVerb(Generic[T]):
    """See `taskflow.broker.transactional.Verb`."""

    def __init__(self, steps: Callable[[], Steps[T]]) -> None:
        self.steps = steps

    def run(self, run: RunStatement, /) -> T:
        return drive(self.steps(), run)


class PostgresTransactional:
    """The verbs of one store. `name` is the one that the store calls itself (see describe_store() in transactional.sql)."""

    dialect: Dialect = "postgresql"

    def __init__(self, place: str, schema: str, name: str, wall: Callable[[], int | None], capacity: int | None) -> None:
        self.place = place
        self._schema = schema
        self._name = name
        self._wall = wall
        self._capacity = capacity

    def check(self, purpose: Purpose = "enqueue") -> PostgresVerb[None]:
        return PostgresVerb(lambda: self._check(_FUNCTIONS[purpose]))

    def enqueue(self, envelopes: Sequence[Envelope]) -> PostgresVerb[list[Added | Refused]]:
        return PostgresVerb(lambda: self._enqueue(envelopes))

    def settle(self, settlement: Settlement) -> PostgresVerb[Settled]:
        return PostgresVerb(lambda: self._settle(settlement))

    def _check(self, function: str) -> Steps[None]:
        yield from self._check_rights(function)
        [(told,)] = yield Statement(f'SELECT "{self._schema}".{DESCRIBING}()')
        if name_in(_text(told)) != self._name:
            raise WrongConnection(
                f"the connection is to another database than the broker's, {self.place}, although that has a schema {self._schema!r} "
                "with a store too: use a connection to the broker's database"
            )

    def _check_rights(self, function: str) -> Steps[None]:
        """Ask the catalog, because a call of a function that is missing, or may not be called, would make the transaction fail."""
        [(rights,)] = yield Statement(_RIGHTS.format(function), (self._schema,))
        if _text(rights) != "granted":
            problem = {"missing": "has no store there", "denied": "has one that the connection's role may not use"}[_text(rights)]
            raise WrongConnection(
                f"the broker is {self.place}, but the database of the connection {problem}: use a connection to the broker's database, as "
                f"a role that has USAGE on the schema {self._schema!r} and EXECUTE on its function {function}(text)"
            )

    def _enqueue(self, envelopes: Sequence[Envelope]) -> Steps[list[Added | Refused]]:
        if not envelopes:
            return []
        request: dict[str, Any] = {"wall": self._wall()}
        if self._capacity is None and len(envelopes) == 1 and _is_ready(envelopes[0]):
            request["one"] = _one(envelopes[0])
        else:
            request |= {"capacity": self._capacity} | dict(zip(SENT, columns_of_calls(envelopes), strict=True))
            request |= {"keys": keys} if (keys := sum(envelope.key is not None for envelope in envelopes)) else {}
        answer = yield from self._call(_FUNCTIONS["enqueue"], json.dumps(request, default=_bytea))
        if answer["answers"] is None:
            return [Added(envelope.id) for envelope in envelopes]
        answers = [bytes.fromhex(each) for each in answer["answers"]]
        return [added_or_refused(*pair) for pair in zip(envelopes, answers, strict=True)]

    def _settle(self, settlement: Settlement) -> Steps[Settled]:
        if not is_possible(settlement):
            return Settled.STALE
        request = {
            "wall": self._wall(),
            "id": settlement.id,
            "fence": fence_of(settlement.epoch, settlement.claim),
            "ran_for": to_microseconds(settlement.ran_for),
            "keep_for": kept_for(settlement),
            "result": cast(Succeeded, settlement.verdict).result,
            "progress": pack_progress(settlement.progress),
            "follow_ups": dict(zip(SENT, columns_of_calls(settlement.follow_ups), strict=True)) if settlement.follow_ups else None,
        }
        answer = yield from self._call(_FUNCTIONS["settle"], json.dumps(request, default=_bytea))
        return Settled(answer["settled"])

    def _call(self, function: str, request: str) -> Steps[Any]:
        """Call one of the functions. Raises the error that its answer stands for."""
        [(text,)] = yield Statement(f'SELECT "{self._schema}".{function}(%s)', (request,))
        answer = json.loads(_text(text))
        if "refused" in answer:
            raise _REFUSALS[answer["refused"]](answer["message"])
        return answer


_RIGHTS: Final = """\
SELECT coalesce(pg_catalog.min(CASE WHEN pg_catalog.has_schema_privilege(pronamespace, 'USAGE') AND \
pg_catalog.has_function_privilege(p.oid, 'EXECUTE') THEN 'granted' ELSE 'denied' END), 'missing') FROM pg_catalog.pg_proc AS p \
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) pronamespace \
WHERE proname OPERATOR(pg_catalog.=) '{}' AND nspname OPERATOR(pg_catalog.=) %s"""

_REFUSALS: Final[dict[str, Callable[[str], TaskflowError]]] = {
    "busy": lambda message: KeyBusy(
        f"nothing was sent: another open transaction holds a key ({message}): repeat the call, or find that transaction in "
        "pg_stat_activity (state 'idle in transaction') and end it"
    ),
    "changed": lambda message: KeyBusy(
        "nothing was sent: another transaction has taken a key since this transaction began, and at this isolation level it cannot see "
        "the job: roll back, and repeat the transaction"
    ),
    "full": StoreFull,
    "keys": lambda message: BrokerRefused(
        f"nothing was sent: {message}: send them in several transactions, or without keys, or raise max_locks_per_transaction"
    ),
}


def _is_ready(envelope: Envelope) -> bool:
    ties = envelope.key is not None or envelope.awaits > 0 or envelope.joins or envelope.tags
    return not (ties or envelope.after or envelope.at is not None)


def _one(envelope: Envelope) -> dict[str, Any]:
    """Return the fields of add_ready_within()."""
    fields = {"queue": envelope.queue, "job": envelope.job, "priority": envelope.priority, "id": envelope.id, "payload": envelope.payload}
    fields |= {"extras": extras} if (extras := pack_extras(envelope)) else {}
    return fields | ({} if envelope.expires is None else {"expiry": to_microseconds(envelope.expires)})


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytea(value: Any) -> str:
    assert isinstance(value, bytes), value
    return f"\\x{value.hex()}"
