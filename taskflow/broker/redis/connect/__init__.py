"""Connections to a Redis server: its address, single connections, an event loop's pool, and checks of the server."""
