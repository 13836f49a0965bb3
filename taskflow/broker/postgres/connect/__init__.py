"""Connections to a PostgreSQL server: its address, the connections of an event loop, and the schema that they find."""
