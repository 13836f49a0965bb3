"""Derives the statements that write records from the declaration in `engine/records.py`, and packs steps into their arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.engine.records import HEADERS, RUNNING, TABLES, Field, Flag, Kind, Type
from taskflow.broker.engine.seam import KEEP, After, Put, Ref, Rev, Step
from taskflow.broker.postgres.queries import claimed_bodies
from taskflow.broker.postgres.tables import BY_INDEX, OTHERS, RESTARTED, SETTINGS, WRITTEN, is_made_apart, tables, type_of

AFTER_BASE: Final = -(1 << 63) + (1 << 61)
"""Added to a number of microseconds to mark it as relative to the store's time."""

_MIN_TIME: Final = -(1 << 62)
"""Numbers below this are relative to the store's time."""

PUT: Final = {"step": "integer", "id": "bytea", "old": "bigint", "kept": "bigint", "parts": "smallint"}
"""The columns of a put before its fields: the number of its step, and the id and former revision of the record (NULL if it is new). The
bits of `kept` mark the fields that stay unchanged, and the bits of `parts` do so for sent, state and content."""

WHOLE: Final = ("step", "id", "old")
"""The columns that are always sent in full. Any other column is reduced to one element if all its elements are equal."""

RESTARTS: Final = 1 << 62
"""The bit of `kept` that lets a put write fields with an owner."""

PARTS: Final = ("sent", "state", "content")


def put_fields(kind: int) -> list[Field]:
    """Return the fields that a put may write, in the order of their bits in `kept`."""
    return [*WRITTEN[kind], *(field for field in RESTARTED[kind] if not is_made_apart(kind, field))]


def put_columns(kind: int) -> dict[str, str]:
    return {**PUT, **{field.name: type_of(field) for field in put_fields(kind)}, **dict.fromkeys(PARTS, "bytea")}


def _value(field: Field) -> str:
    if field.type is Type.NUMBER:
        return f"CASE WHEN g.{field.name} < {_MIN_TIME} THEN now_at + (g.{field.name} + {-AFTER_BASE}) ELSE g.{field.name} END"
    return f"g.{field.name}"


def _updated(kind: int, field: Field) -> str:
    bit = 1 << [each.name for each in put_fields(kind)].index(field.name)
    keeps = f"g.kept & {bit} <> 0" + (f" OR g.kept & {RESTARTS} = 0" if field.owner is not None else "")
    return f"{field.name} = CASE WHEN {keeps} THEN r.{field.name} ELSE {_value(field)} END"


def inserted(kind: int, source: str) -> str:
    """Return the INSERT statement for new records, from the rows `source`, whose alias is g."""
    fields = put_fields(kind)
    names = [field.name for field in fields]
    values = [_value(field) if field.default is None else f"coalesce({_value(field)}, {_default(field)})" for field in fields]
    if any(field.name == "created_at" for field in HEADERS[kind]):
        names.append("created_at")
        values.append("now_at")
    columns = ", ".join(["id", "rev", *names, *PARTS])
    order = (
        "n" if any(field.name == "seq" for field in HEADERS[kind]) else "id"
    )  # so that two calls that create the same records lock them in the same order
    return (
        f"INSERT INTO @.{TABLES[kind]} ({columns}) SELECT g.id, new_rev, {', '.join([*values, *(f'g.{part}' for part in PARTS)])} "
        f"FROM {source} WHERE g.old IS NULL AND g.step <> ALL (bad) ORDER BY g.{order}"
    )


def _default(field: Field) -> str:
    return f"'{field.default}'" if isinstance(field.default, str) else str(field.default)


def updated(kind: int, source: str) -> str:
    """Return the UPDATE statement for records, from the rows `source`. For jobs, the alias `o` has the former queue and status."""
    fields = [_updated(kind, field) for field in put_fields(kind)]
    parts = [f"{part} = CASE WHEN g.parts & {1 << bit} <> 0 THEN r.{part} ELSE g.{part} END" for bit, part in enumerate(PARTS)]
    table, former = f"@.{TABLES[kind]}", ", queue, status" if kind == Kind.JOB else ""
    return (
        f"UPDATE {table} AS r SET rev = new_rev, {', '.join([*fields, *parts])} FROM {source} "
        f"CROSS JOIN LATERAL (SELECT ctid AS tid{former} FROM {table} AS r WHERE r.id = g.id OFFSET 0) AS o "
        "WHERE r.ctid = o.tid AND g.old IS NOT NULL AND g.step <> ALL (bad)"
    )


def _json_rows(kind: int) -> str:
    """Return a subquery for the changes of records of this kind, which are sent as JSON."""
    columns = put_columns(kind)
    sent = ", ".join(f"{name} {'text' if of_type == 'bytea' else of_type}" for name, of_type in columns.items())
    decoded = ", ".join(f"decode({name}, 'hex') AS {name}" if of_type == "bytea" else name for name, of_type in columns.items())
    given = f"jsonb_to_recordset(others -> '{TABLES[kind]}') AS sent ({sent}, does smallint)"
    return f"(SELECT {decoded}, does, row_number() OVER () AS n FROM {given}) AS g"


def changing_others() -> tuple[str, str]:
    """Return the statements of `apply` that lock and check records other than jobs and keys, and the statements that change them."""
    checks, changes = [], []
    for kind in OTHERS:
        table, rows = TABLES[kind], _json_rows(kind)
        checks.append(f"""\
        IF others ? '{table}' THEN
            PERFORM 1 FROM @.{table} WHERE id = ANY (ARRAY(SELECT g.id FROM {rows})) ORDER BY id FOR UPDATE;
            bad := bad || ARRAY(SELECT g.step FROM {rows} WHERE (SELECT rev FROM @.{table} AS r WHERE r.id = g.id) IS DISTINCT FROM g.old);
        END IF;""")
        changes.append(f"""\
        IF others ? '{table}' THEN
            {_BEFORE.get(kind, "").replace("@rows", rows)}
            DELETE FROM @.{table} WHERE id = ANY (ARRAY(SELECT g.id FROM {rows} WHERE does = 2 AND g.step <> ALL (bad)));
            {updated(kind, rows)} AND does = 1;
            {inserted(kind, rows).replace("WHERE ", "WHERE does = 1 AND ")};
            {_BEYOND.get(kind, "").replace("@rows", rows)}
        END IF;""")
    return "\n".join(checks), "\n".join(changes)


_BEFORE: Final = {
    Kind.SESSION: """DELETE FROM @.requests WHERE session = ANY (
                ARRAY(SELECT g.id FROM @rows WHERE (does = 2 OR g.old IS NULL) AND g.step <> ALL (bad))
            );""",
    Kind.SCHEDULE: "DELETE FROM @.declared WHERE id = ANY (ARRAY(SELECT g.id FROM @rows WHERE does = 2 AND g.step <> ALL (bad)));",
    Kind.QUEUE: """PERFORM @.add_wakeup('queue:' || queue, (
                SELECT count(*) FROM (SELECT FROM @.jobs WHERE status = S.READY AND jobs.queue = each.queue LIMIT 1000) AS first
            )) FROM (SELECT convert_from(g.id, 'UTF8') AS queue FROM @rows WHERE does = 2 AND g.step <> ALL (bad)) AS each;""",
}
_BEYOND: Final = {
    Kind.SESSION: """PERFORM @.raise_first_lease(g.id) FROM @rows WHERE does = 1 AND g.old IS NOT NULL AND g.step <> ALL (bad);
            IF others @? '$.sessions[*].request' THEN
                WITH given AS (
                    SELECT decode(id, 'hex') AS session, request
                    FROM jsonb_to_recordset(others -> 'sessions') AS sent (step integer, id text, request bigint)
                    WHERE request IS NOT NULL AND step <> ALL (bad)
                ), former AS (
                    DELETE FROM @.requests AS r USING given WHERE r.session = given.session AND r.request <> given.request
                )
                INSERT INTO @.requests (session, request) SELECT session, request FROM given ON CONFLICT DO NOTHING;
            END IF;""",
}


def _new_job() -> str:
    """Return the defaults of a job's fields as a JSON object."""
    return f"'{json.dumps({field.name: field.default for field in HEADERS[Kind.JOB] if field.default is not None})}'::jsonb"


def fragments() -> dict[str, str]:
    """Return the parts of SQL files that are derived from the declaration, by their placeholders."""
    columns = put_columns(Kind.JOB)
    values = [
        name if name in WHOLE else f"CASE WHEN cardinality(j_{name}) = 1 THEN j_{name}[1] ELSE {name} END AS {name}" for name in columns
    ]
    sent = f"unnest({', '.join(f'j_{name}' for name in columns)}) WITH ORDINALITY AS sent ({', '.join(columns)}, n)"
    rows = f"(SELECT {', '.join(values)}, n FROM {sent}) AS g"
    checks, changes = changing_others()
    return {
        "@TABLES": tables(),
        "@SETTINGS": SETTINGS,
        "@CLAIMED_BODIES": claimed_bodies("r"),
        "@PUT_JOBS_ARGUMENTS": ", ".join(f"j_{name} {of_type}[]" for name, of_type in columns.items()),
        "@INSERT_JOBS": inserted(Kind.JOB, rows),
        "@NEW_JOB": _new_job(),
        "@UPDATE_JOBS": updated(Kind.JOB, rows),
        "@CHECK_OTHERS": checks,
        "@CHANGE_OTHERS": changes,
        "@TIES": str(Flag.TIES),
        "@IS_DUE": BY_INDEX["due"].when,
        "@IS_TO_ADMIT": BY_INDEX["to_admit"].when,
        "@KEYED": str(Flag.KEYED),
        "@LIMITED": str(Flag.LIMITED),
        "@FAIR": str(Flag.FAIR),
        "@MANY_GATES": str(Flag.MANY_GATES),
        "@ADMITTED": str(Flag.ADMITTED),
        "@AWAITED": str(Flag.AWAITED),
        "@TAGGED": str(Flag.TAGGED),
        "@KEPT_APART": str(Flag.KEPT_APART),
        "@BEHIND": str(Flag.BEHIND),
        "@MARKED": str(Flag.MARKED),
        "@ARRIVING": str(Flag.ARRIVING),
    }


# --- packing steps ----------------------------------------------------------------------------------------------------

_PLACES: Final = {kind: {field.name: at for at, field in enumerate(put_fields(kind))} for kind in HEADERS}
_ALL: Final = {kind: (1 << len(places)) - 1 for kind, places in _PLACES.items()}
_WIDTH: Final = len(put_columns(Kind.JOB))


class Changes:
    """Collects the changes of steps in the columns that apply() takes: see apply.sql. `ended` maps the number of each step to the ids of
    the jobs that it ends or drops."""

    def __init__(self, steps: Sequence[tuple[int, Step]]) -> None:
        self._jobs = list[tuple[Any, ...]]()
        self._other_jobs = list[tuple[Any, ...]]()
        self._keys = list[tuple[Any, ...]]()
        self._adds = list[tuple[Any, ...]]()
        self._totals = dict[tuple[str, str, int], bytearray]()
        self._bytes = (steps[-1][0] >> 3) + 1
        self._others: dict[str, list[dict[str, Any]]] = {}
        self._entries = list[tuple[int, str, str, list[str]]]()
        self.ended: dict[int, list[bytes]] = {}
        for number, step in steps:
            self._take(number, step)

    def _take(self, number: int, step: Step) -> None:
        left = dict(step.expect)
        for put in step.puts:
            self._put(number, put, number_of(left.pop(put.ref)))
        for ref in step.drops:
            self._name(number, ref, number_of(left.pop(ref)), 2)
        for ref, rev in left.items():
            self._name(number, ref, number_of(rev), 0)
        for each in step.adds:
            self._adds.append((number, each.ref.id, each.n, each.most))
        for (queue, event), n in step.totals.items():
            of_steps = self._totals.setdefault((queue, str(event), n), bytearray(self._bytes))
            of_steps[number >> 3] |= 1 << (number & 7)

    def _put(self, number: int, put: Put, old: Any) -> None:
        kind, record_id = put.ref
        for index, entries in (put.entries or {}).items():
            shown = [entry if isinstance(entry, str) else entry.hex() for entry in entries]
            self._entries.append((number, index, record_id.hex(), shown))
        if kind == Kind.KEY:
            self._keys.append((number, record_id, old, put.header.get("holder"), put.header.get("next"), 1))
            return
        values, kept = _values(kind, put)
        parts = [put.sent, put.state, put.content]
        left = (put.sent is KEEP) + 2 * (put.state is KEEP) + 4 * (put.content is KEEP)
        bodies = [None if part is KEEP else part for part in parts]
        if kind == Kind.JOB:
            self._jobs.append((number, record_id, old, kept, left, *values, *bodies))
            if put.header.get("status", 0) > RUNNING:
                self.ended.setdefault(number, []).append(record_id)
        else:
            texts = [_storable(value) if isinstance(value, str) else value for value in values]
            row = dict(zip(put_columns(kind), (number, record_id, old, kept, left, *texts, *bodies), strict=True))
            if kind == Kind.SESSION and (old is None or put.restarts) and "request" in put.header:
                row["request"] = put.header["request"]
            self._others.setdefault(TABLES[kind], []).append({**row, "does": 1})

    def _name(self, number: int, ref: Ref, old: Any, does: int) -> None:
        if ref.kind == Kind.JOB:
            self._other_jobs.append((number, ref.id, old, does == 2))
            if does == 2:
                self.ended.setdefault(number, []).append(ref.id)
        elif ref.kind == Kind.KEY:
            self._keys.append((number, ref.id, old, None, None, does))
        else:
            self._others.setdefault(TABLES[ref.kind], []).append({"step": number, "id": ref.id, "old": old, "does": does})

    def arguments(self) -> list[Any]:
        ended = [job_id for ids in self.ended.values() for job_id in ids]
        jobs = _columns(self._jobs, _WIDTH)
        return [
            *jobs[: len(WHOLE)],
            *map(collapsed, jobs[len(WHOLE) :]),
            *_columns(self._other_jobs, 4),
            *_columns(self._keys, 6),
            *_columns(self._adds, 4),
            *_columns([(*name, bytes(steps)) for name, steps in self._totals.items()], 4),
            json.dumps(self._others, default=bytes.hex) if self._others else None,
            json.dumps(self._entries) if self._entries else None,
            ended,
        ]


def _values(kind: int, put: Put) -> tuple[list[Any], int]:
    """Return the values of the fields that a put writes, and the bits of the fields that it leaves unchanged."""
    places = _PLACES[kind]
    values: list[Any] = [None] * len(places)
    kept = _ALL[kind] | (RESTARTS if put.restarts else 0)
    for name, value in put.header.items():
        at = places.get(name)
        if at is not None:
            values[at] = value + AFTER_BASE if type(value) is After else value
            kept ^= 1 << at
    return values, kept


def _storable(name: str) -> str:
    """Escape the characters that PostgreSQL can't store as text: lone surrogates and NUL. A host name may consist of any bytes."""
    return name.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def collapsed(column: list[Any]) -> list[Any]:
    """Reduce a column to one element if all its elements are equal, because the driver takes a third of a microsecond per element."""
    return column[:1] if column and column.count(column[0]) == len(column) else column


def trimmed(column: list[Any]) -> list[Any]:
    """Return an empty column if all of its values are None: unnest() pads it with NULLs."""
    return [] if column.count(None) == len(column) else column


def number_of(rev: Rev) -> int | None:
    return int.from_bytes(rev, "big", signed=True) if rev else None
