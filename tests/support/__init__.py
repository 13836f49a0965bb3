"""What tests of every floor stand on: stores of each kind, a world around one, verdicts, invariants, failpoints."""
