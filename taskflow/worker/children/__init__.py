"""Child processes for jobs with ``runs_in="process"``."""
