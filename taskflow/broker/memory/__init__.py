"""An in-process broker: the engine over records in dicts."""

from taskflow.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
