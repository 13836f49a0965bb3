"""The broker within one process: heap and dict, nothing clever. It is the readable specification of all others."""

from taskflow.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
