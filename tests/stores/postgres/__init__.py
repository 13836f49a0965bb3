"""The Postgres broker: what is its own, beside the conformance suite."""
