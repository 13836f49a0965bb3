"""Layer 4: take, run, settle."""
