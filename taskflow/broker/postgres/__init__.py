"""Jobs in PostgreSQL: a queue beside the application's own tables. See `taskflow.broker.postgres.broker`."""

from taskflow.broker.postgres.broker import PostgresBroker
from taskflow.broker.postgres.connect.server import Server

__all__ = ["PostgresBroker", "Server"]
