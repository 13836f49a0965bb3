"""An in-process broker, built from heaps and dicts. It also serves as a readable specification for all the others."""

from taskflow.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
