"""A broker within one process, built from heaps and dicts. It is the readable specification of all other brokers."""

from taskflow.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
