"""The face that users see: declaring jobs, sending them, asking what became of them. On every broker that there is."""
