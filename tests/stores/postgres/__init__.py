"""The Postgres broker's own tests, beside the conformance suite."""
