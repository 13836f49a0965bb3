"""Connects to a PostgreSQL server: its address, a pool for each event loop, and checks of the schema."""
