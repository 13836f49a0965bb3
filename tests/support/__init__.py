"""Shared code of the tests of every layer: stores of each kind, a world around one, verdicts, invariants and failpoints."""
