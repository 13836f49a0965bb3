"""Connects to a PostgreSQL server: its address, read from a broker URL, and a pool of connections for each event loop."""
