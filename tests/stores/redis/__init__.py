"""The Redis broker on servers that fail: each test starts its own, and does to it what happens to servers."""
