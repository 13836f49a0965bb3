"""The Redis broker on servers that fail: each test starts its own, and makes it fail as servers do."""
