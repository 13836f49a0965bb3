"""Floor 3: declaring jobs and sending them."""
