"""A broker in a file: durable, for several processes on one machine, with nothing to install."""

from taskflow.broker.sqlite.broker import SqliteBroker
from taskflow.broker.sqlite.store_file import Room

__all__ = ["Room", "SqliteBroker"]
