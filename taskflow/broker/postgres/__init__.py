"""A broker in PostgreSQL, which keeps jobs beside the application's tables. See `taskflow.broker.postgres.broker`."""

from taskflow.broker.postgres.broker import PostgresBroker
from taskflow.broker.postgres.connect.server import PostgresTarget

__all__ = ["PostgresBroker", "PostgresTarget"]
