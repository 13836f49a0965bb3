"""Connections to a PostgreSQL server: its address, the connections of an event loop, and the checks of its schema."""
