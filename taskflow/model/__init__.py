"""Layer 1: plain data and pure rules. No I/O, no await, no mutable globals."""
