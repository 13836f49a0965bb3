"""The broker in a file: one machine, several processes, durable, nothing to install."""

from taskflow.broker.sqlite.broker import SqliteBroker
from taskflow.broker.sqlite.place import Room

__all__ = ["Room", "SqliteBroker"]
