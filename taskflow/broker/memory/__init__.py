"""An in-process broker: the engine, with its records in dicts."""

from taskflow.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
