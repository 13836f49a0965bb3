"""Connections to a Redis server: its address, one connection, the pool of an event loop, and the checks of the server."""
