"""An independent broker made of heaps and dicts, which shares nothing with the engine. The other brokers are compared with it.

One engine under all stores would only agree with itself. So this broker is kept, and follows each change of the contract."""

from tests.reference.broker import ReferenceBroker

__all__ = ["ReferenceBroker"]
