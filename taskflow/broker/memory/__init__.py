"""The broker within one process, made of heaps and dicts. It is the readable specification of all others."""

from taskflow.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
