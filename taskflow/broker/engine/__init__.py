"""The engine: the rules for jobs, applied to the records of a store. `seam.py` is the contract between engine and store."""
