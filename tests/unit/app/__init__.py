"""The API that users see, on every broker: declaring jobs, sending them, and asking for their results."""
