"""Checks who owns a schema. Our functions run with the rights of their caller, so every role that could replace one must be trusted.

Trusted roles are the connected role, roles that it is a member of, superusers, the owner of the database, and the role in `owner=` of the
broker URL. A role that was merely granted rights may use a schema that one of these owns.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from taskflow.model.errors import BrokerRefused


async def check(connection: asyncpg.Connection, schema: str, place: str, trusted: str | None) -> None:
    """Raise BrokerRefused if a role that is not trusted owns a part of the schema, or may create functions or triggers in it.

    `place` names the server.
    """
    found = await connection.fetchrow(FIRST_STRANGER, schema, trusted)
    if found is None:
        return
    role = found["role"]
    if found["is_granted"]:
        remedy = "revoke that right"
    else:
        remedy = f"add owner={role} to the broker URL if you trust that role, or drop the schema"
    raise BrokerRefused(
        f"the schema {schema!r} of PostgreSQL at {place} is not safe to use: {role} {found['how']}, and could have functions run as "
        f"{found['as_whom']}; {remedy}"
    )


# Membership is read from the catalog, because for a superuser pg_has_role() returns true for every role.
FIRST_STRANGER: Final = """
WITH RECURSIVE mine (oid) AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user
    UNION SELECT roleid FROM pg_catalog.pg_auth_members JOIN mine ON member = mine.oid
), space AS (
    SELECT oid, nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname = $1
), trusted (oid) AS (
    SELECT oid FROM mine
    UNION ALL SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database()
    UNION ALL SELECT oid FROM pg_catalog.pg_roles WHERE rolsuper OR rolname = $2 OR rolname = 'pg_database_owner'
), found (oid, how, is_granted) AS (
    SELECT nspowner, 'owns it', false FROM space
    UNION ALL SELECT grantee, 'may create in it', true
    FROM space, aclexplode(nspacl) WHERE privilege_type = 'CREATE' AND grantee <> nspowner
    UNION ALL SELECT proowner, 'owns its function ' || proname, false FROM pg_catalog.pg_proc, space
    WHERE pronamespace = space.oid AND proowner <> nspowner
    UNION ALL SELECT relowner, 'owns ' || relname || ' in it', false FROM pg_catalog.pg_class, space
    WHERE relnamespace = space.oid AND relowner <> nspowner
    UNION ALL SELECT grantee, 'may put triggers on ' || relname || ' in it', true
    FROM pg_catalog.pg_class, space, aclexplode(relacl)
    WHERE relnamespace = space.oid AND privilege_type = 'TRIGGER' AND grantee <> relowner
)
SELECT CASE found.oid WHEN 0 THEN 'everybody' ELSE pg_catalog.pg_get_userbyid(found.oid) END AS role, how, is_granted,
    current_user AS as_whom
FROM found WHERE found.oid NOT IN (SELECT oid FROM trusted) LIMIT 1
"""
