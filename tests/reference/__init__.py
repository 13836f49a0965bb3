"""An independent broker from heaps and dicts, which knows nothing of the engine. The other brokers are compared with it.

One engine under all stores would agree with itself. So this one stays, and follows each change of the contract.
"""

from tests.reference.broker import ReferenceBroker

__all__ = ["ReferenceBroker"]
