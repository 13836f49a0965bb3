"""Layer 3: declaring and sending jobs."""
