"""Connects to a Redis server: its address, single connections, a pool for each event loop, and checks of the server."""
