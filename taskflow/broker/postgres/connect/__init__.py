"""Connections to a PostgreSQL server: its address, an event loop's connections, and checks of the schema."""
