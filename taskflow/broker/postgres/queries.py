"""Derives the SQL functions that read records from the declaration in `engine/records.py`. Each function returns rows of the type `row`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from taskflow.broker.engine.records import HEADERS, TABLES, Field, Index, Kind, Type
from taskflow.broker.postgres.tables import BY_INDEX, JOB, SETTINGS, places, type_of


def _function(name: str, arguments: str, returns: str, body: str) -> str:
    return (
        f"CREATE FUNCTION @.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql STABLE {SETTINGS} AS $$\n"
        f"#variable_conflict use_column\nBEGIN\n    {body}\nEND\n$$;\n"
    )


def placed(kind: int) -> dict[str, str]:
    """Return, for each column of `row`, the field of this kind that it carries. Kinds other than jobs use columns of the same types."""
    if kind == Kind.JOB:
        return {name: name for name in JOB}
    free = {name: field.type for name, field in JOB.items()}
    found: dict[str, str] = {}
    for field in HEADERS[kind]:
        column = next(name for name, of_type in free.items() if of_type is field.type)
        del free[column]
        found[column] = field.name
    return found


_BODIES: Final = {"sent": "P.MAX_BYTES", "state": "P.MAX_BYTES", "content": "P.MAX_PAYLOAD_BYTES"}
"""The maximum number of bytes fetched for each part of a job. Parts of other kinds may be as large as a payload."""


def _most(kind: int, body: str) -> str:
    return _BODIES[body] if kind == Kind.JOB else _BODIES["content"]


def _if_short(kind: int, alias: str, body: str) -> str:
    return f"CASE WHEN octet_length({alias}.{body}) <= {_most(kind, body)} THEN {alias}.{body} END"


def as_row(
    kind: int, alias: str, part: str, *, bodies: Sequence[str] = ("sent", "state"), content: str = "false", value: str = "NULL"
) -> str:
    """Return the columns of `row` for a record. A body that is too long is left out, and reported as damage. `part`, `content` (a
    condition) and `value` are SQL expressions."""
    given = placed(kind)
    columns = []
    for name, field in JOB.items():
        source = f"{alias}.{given[name]}" if name in given else f"NULL::{type_of(field)}"
        if kind == Kind.SESSION and given.get(name) == "request":
            source = f"coalesce((SELECT max(request) FROM @.requests WHERE session = {alias}.id), 0)"
        columns.append(source)
    columns += [_if_short(kind, alias, body) if body in bodies else "NULL::bytea" for body in ("sent", "state")]
    if content == "false":
        columns.append("NULL::bytea")
    else:
        columns.append(f"CASE WHEN {content} AND octet_length({alias}.content) <= {_BODIES['content']} THEN {alias}.content END")
    columns.append(_damage(kind, alias, [*bodies, *(["content"] if content != "false" else [])]))
    return f"{part}, {kind}::smallint, {alias}.id, {alias}.rev, {value}::bytea, {', '.join(columns)}"


def _damage(kind: int, alias: str, bodies: Sequence[str]) -> str:
    if not bodies:
        return "NULL::text"
    sizes = {body: f"octet_length({alias}.{body})" for body in bodies}
    too_long = [f"WHEN {size} > {_most(kind, body)} THEN concat('{body}', E'\\t', {size}, ' bytes')" for body, size in sizes.items()]
    return f"CASE {' '.join(too_long)} END"


def claimed_bodies(alias: str) -> str:
    """Return the columns with the bodies of a leased job, and the damage to them."""
    return f"{', '.join(_if_short(Kind.JOB, alias, body) for body in _BODIES)}, {_damage(Kind.JOB, alias, list(_BODIES))}"


def loading() -> str:
    """Return the functions that read records by their ids, one for each kind."""
    lines = []
    for kind, table in TABLES.items():
        columns = as_row(kind, "r", "0::smallint", content="with_content")
        query = f"SELECT {columns} FROM @.{table} AS r WHERE r.id = ANY (ids)"
        lines.append(_function(f"load_{table}", "ids bytea[], with_content boolean", "SETOF @.row", f"RETURN QUERY {query};"))
    return "\n".join(lines)


class ScanShape(NamedTuple):
    """The shape of a scan: all but the values of its prefix, `after` and `until`. `of` names the index; `prefix` is the prefix's length."""

    of: str
    prefix: int = 0
    backwards: bool = False
    with_records: bool = False


_FLOORS: Final = {"due": ("due", "due_at"), "fading": ("fade", "fade_at")}
"""Indexes that are read starting at a low-water mark, each with the kind of the mark and the column."""

_FROM_FIRST_LEASE: Final = (ScanShape("leases", prefix=1), ScanShape("marked", prefix=1))
"""Scans that begin at the session's first lease: see low_water_marks.sql."""

HOT_SCANS: Final = (
    *(
        ScanShape(name)
        for name in (
            "beats",
            "dying",
            "gone",
            "offers",
            "expiring",
            "fading",
            "paused",
            "arriving",
            "rolling",
            "to_admit",
            "open",
            "rates",
            "flows",
            "turns",
        )
    ),
    *_FROM_FIRST_LEASE,
    ScanShape("flows", with_records=True),
    ScanShape("inbox", with_records=True),
    ScanShape("gated", prefix=2),
    ScanShape("fair", prefix=2),
    ScanShape("lapsing"),
    ScanShape("lapsing", with_records=True),
    ScanShape("lapsing", backwards=True, with_records=True),
)
"""Scans that heartbeats and upkeep begin with. Each scan has a function, so that its plan is made once."""


def hot_name(shape: ScanShape) -> str:
    return f"scan_{shape.of}{'_back' if shape.backwards else ''}{'_records' if shape.with_records else ''}"


def scan_sql(
    shape: ScanShape, values: Sequence[str], limit: str, part: str, content: str, sizes: tuple[int, int] = (0, 0), *, is_within: bool = True
) -> str:
    """Return a scan in SQL. `values` are the values of its prefix, of `after` and of `until`; `sizes` are the lengths of `after` and
    `until`. `is_within` is True if `after` and `until` begin with the prefix.

    In that case, the prefix's last column is compared as part of a range. With `=` for all columns, another index could give the same
    order, and for a table that seems empty, PostgreSQL would plan to read that whole index. The columns before it are compared with `=`,
    because a comparison of rows lets PostgreSQL find the first position, but only its first column ends the scan.
    """
    index = BY_INDEX[shape.of]
    at = places(index) if index.entries is None else ["e.value", "e.id"]
    if index.entries is None:
        at = [place.replace("(-", "(-r.") if place.startswith("(") else f"r.{place}" for place in at]
    first, last = ("<", ">") if shape.backwards else (">", "<")
    prefix, ends = values[: shape.prefix], (values[shape.prefix : shape.prefix + sizes[0]], values[shape.prefix + sizes[0] :])
    order = ", ".join(f"{place} {'DESC' if shape.backwards else 'ASC'}" for place in at)
    fixed = max(shape.prefix - 1, 0) if is_within else shape.prefix
    conditions = [f"{place} = {value}" for place, value in zip(at, prefix[:fixed], strict=False)]
    prefix = prefix[fixed:]
    if is_within:
        at, ends = at[fixed:], (ends[0][fixed:], ends[1][fixed:])
    for sign, given, takes_whole in zip((first, last), ends, (False, True), strict=True):
        size = len(given) or len(prefix)
        # a shorter position precedes all positions that begin with it
        is_inclusive = not given or (takes_whole if size == len(at) else sign == ">")
        if size:
            conditions.append(f"({', '.join(at[:size])}) {sign}{'=' if is_inclusive else ''} ({', '.join(given or prefix)})")
    if shape in _FROM_FIRST_LEASE and is_within and not sizes[0]:
        session = values[0]
        first_lease = f"SELECT leases_from FROM @.requests WHERE session = {session} ORDER BY request DESC LIMIT 1"
        conditions[0] = f"(r.session, r.claim) >= ({session}, coalesce(({first_lease}), ''))"
    if index.when:
        conditions.append(f"({index.when})")
    if shape.of in _FLOORS and not shape.backwards and not sizes[0]:
        kind, column = _FLOORS[shape.of]
        conditions.append(f"r.{column} >= (SELECT at FROM @.newest_mark('{kind}'))")
    table, value = f"@.{TABLES[index.kind]} AS r", "NULL"
    if index.entries is not None:
        table = f"@.{index.name} AS e CROSS JOIN LATERAL (SELECT * FROM @.{TABLES[index.kind]} WHERE id = e.id OFFSET 0) AS r"
        value = "@.utf8(e.value)" if index.entries is Type.NAME else "e.value"
    bodies = ("sent", "state") if shape.with_records else ()
    columns = as_row(index.kind, "r", part, bodies=bodies, content=content if shape.with_records else "false", value=value)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"(SELECT {columns} FROM {table}{where} ORDER BY {order} LIMIT {limit})"


_OF_GATE: Final = ScanShape("gated", prefix=1, with_records=True)
_SCAN_GATES: Final = f"""RETURN QUERY SELECT s.* FROM unnest(parts, lims, gates) AS g (part, lim, gate)
    CROSS JOIN LATERAL {scan_sql(_OF_GATE, ["g.gate"], "g.lim", "g.part", "with_content")} AS s;"""
"""Reads the jobs that wait at many gates, because a decision may need those at the gates of every job in a batch. The jobs of a gate are in
order, because only a nested loop can join them."""


def scanning() -> str:
    """Return the functions for the hot scans, for scans of many gates, and for all other scans."""
    lines = []
    for shape in HOT_SCANS:
        index = BY_INDEX[shape.of]
        arguments = ["of_part smallint", "lim integer", "with_content boolean"]
        arguments += [f"p{number} {type_of(_field(index, number))}" for number in range(shape.prefix)]
        query = scan_sql(shape, [f"p{number}" for number in range(shape.prefix)], "lim", "of_part", "with_content")
        lines.append(_function(hot_name(shape), ", ".join(arguments), "SETOF @.row", f"RETURN QUERY {query};"))
    lines.append(_function("scan", "statement text", "SETOF @.row", "RETURN QUERY EXECUTE statement;"))
    of_gates = "parts smallint[], lims integer[], with_content boolean, gates bytea[]"
    lines.append(_function("scan_gates", of_gates, "SETOF @.row", _SCAN_GATES))
    return "\n".join(lines)


def looking() -> str:
    """Return the functions that `grouping` returns, and `look`, with which most decisions begin. `look` reads the clock, jobs and keys,
    and runs `MOVE_SCANS` if asked to."""
    clock = _row_of(part="(-1)::smallint", created_at="@.wall(wall)")
    shapes = enumerate(map(ScanShape, ("due", "hearers", "ends")), 1)
    scans = "\n        ".join(f"RETURN QUERY {scan_sql(shape, [], '1', f'{number}::smallint', 'false')};" for number, shape in shapes)
    body = f"""RETURN QUERY SELECT {clock};
    IF cardinality(jobs) > 0 THEN
        RETURN QUERY SELECT {as_row(Kind.JOB, "r", "0::smallint", content="with_content")} FROM @.jobs AS r WHERE r.id = ANY (jobs);
    END IF;
    IF cardinality(keys) > 0 THEN
        RETURN QUERY SELECT {as_row(Kind.KEY, "r", "0::smallint")} FROM @.keys AS r WHERE r.id = ANY (keys);
    END IF;
    IF has_moves THEN
        {scans}
    END IF;"""
    arguments = "wall bigint, jobs bytea[], keys bytea[], with_content boolean, has_moves boolean"
    return _function("look", arguments, "SETOF @.row", body) + grouping()


def _row_of(**values: str) -> str:
    """Return the columns of `row` with these values, and NULL in the others."""
    types = {"part": "smallint", "kind": "smallint", "id": "bytea", "rev": "bigint", "value": "bytea"}
    types |= {name: type_of(field) for name, field in JOB.items()} | {
        "sent": "bytea",
        "state": "bytea",
        "content": "bytea",
        "damage": "text",
    }
    return ", ".join(values.get(name, f"NULL::{of_type}") for name, of_type in types.items())


def grouping() -> str:
    """Return the functions that read groups and totals. A group has a row with its first position, and another with its last if it's known.

    In these rows, the column for the revision holds the group's size, or 0 if the index isn't counted.
    """
    first = {"part": "of_part", "kind": "0::smallint", "rev": "0::bigint"}
    functions = {
        "groups_status": f"""WITH noted AS MATERIALIZED (
                SELECT queue, substr(what, 2)::smallint AS code, n FROM @.counted WHERE what LIKE '=%'
            ), every AS (
                SELECT queue, code, n FROM noted WHERE n > 0 AND NOT EXISTS (SELECT 1 FROM noted WHERE n < 0)
                UNION ALL -- another program has changed the counted rows
                SELECT queue, status, count(*) FROM @.jobs WHERE status < 7 AND EXISTS (SELECT 1 FROM noted WHERE n < 0)
                GROUP BY queue, status
            ) SELECT {_row_of(part="of_part", rev="n", queue="queue", status="code")} FROM every""",
        "groups_ready": f"""SELECT {_row_of(**first, queue="m.queue", priority="(-m.rank)::smallint", due_at="f.due_at", seq="f.seq")}
            FROM @.ready_marks() AS m CROSS JOIN LATERAL (
                SELECT due_at, seq FROM @.jobs
                WHERE status = 2 AND queue = m.queue AND (-priority) = m.rank AND (due_at, seq) >= (m.at, m.seq)
                ORDER BY due_at, seq LIMIT 1
            ) AS f""",
    }
    for name in ("scheduled", "holding"):
        index = BY_INDEX[name]
        at = ", ".join(f"jobs.{field}" for field in index.at)
        functions[f"groups_{name}"] = f"""WITH RECURSIVE each AS (
                (SELECT {at} FROM @.jobs WHERE {index.when} ORDER BY {at} LIMIT 1)
                UNION ALL
                SELECT next.* FROM each CROSS JOIN LATERAL (
                    SELECT {at} FROM @.jobs WHERE {index.when} AND jobs.queue > each.queue ORDER BY {at} LIMIT 1
                ) AS next
            ) SELECT {_row_of(**first, **{field: field for field in index.at})} FROM each"""
    for name in ("leases", "causes"):
        index = BY_INDEX[name]
        grouped, ordered = index.at[: index.groups], index.at[index.groups :]
        found, up, down = ", ".join(grouped), ", ".join(ordered), ", ".join(f"{field} DESC" for field in ordered)
        same = " AND ".join(f"r.{field} = g.{field}" for field in grouped)
        columns = {field: f"e.{field}" if field in ordered else f"g.{field}" for field in index.at}
        functions[f"groups_{name}"] = f"""WITH g AS (SELECT {found}, count(*) AS n FROM @.jobs WHERE {index.when} GROUP BY {found})
            SELECT {_row_of(part="of_part", kind="e.last::smallint", rev="g.n", **columns)} FROM g CROSS JOIN LATERAL (
                (SELECT 0 AS last, {up} FROM @.jobs AS r WHERE {index.when} AND {same} ORDER BY {up} LIMIT 1)
                UNION ALL
                (SELECT 1, {up} FROM @.jobs AS r WHERE {index.when} AND {same} ORDER BY {down} LIMIT 1)
            ) AS e"""
    lines = [_function(name, "of_part smallint", "SETOF @.row", f"RETURN QUERY {query};") for name, query in functions.items()]
    totals = f"SELECT {_row_of(part='(-2)::smallint', rev='n', queue='queue', job='what')} FROM @.counted WHERE what NOT LIKE '=%'"
    return "\n".join([*lines, _function("load_totals", "", "SETOF @.row", f"RETURN QUERY {totals};")])


def _field(index: Index, number: int) -> Field:
    name = index.at[number].removeprefix("-")
    return next(field for field in HEADERS[index.kind] if field.name == name)


def functions() -> list[str]:
    """Return the SQL of all functions that read records."""
    return [loading(), scanning(), looking()]
