"""What tests of every layer share: stores of each kind, a world around one, verdicts, invariants, failpoints."""
