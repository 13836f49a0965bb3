"""Floor 4: take, run, settle."""
