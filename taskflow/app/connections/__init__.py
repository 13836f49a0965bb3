"""Users' database connections, in whose transactions jobs are sent and completed."""
