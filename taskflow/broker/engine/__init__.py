"""The engine: the rules of jobs, over records that a store keeps. `seam.py` is the contract between the two."""
