"""A broker that keeps jobs in a file: durable, shared by the processes of one machine, and with nothing to install."""

from taskflow.broker.sqlite.broker import SqliteBroker
from taskflow.broker.sqlite.store_file import Opening

__all__ = ["Opening", "SqliteBroker"]
