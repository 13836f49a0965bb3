"""The broker in a file: one machine, several processes, durable, nothing to install."""

from taskflow.broker.sqlite.broker import SqliteBroker
from taskflow.broker.sqlite.store_file import Room

__all__ = ["Room", "SqliteBroker"]
