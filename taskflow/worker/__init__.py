"""Layer 4: claiming, running and settling jobs."""
