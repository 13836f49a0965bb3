"""Child processes for jobs with ``runs_in="process"``.

In the worker, `pool` manages the children, `process` represents one, `spawn` starts it, `output` reads what it prints, and
`errors` defines the errors. `child` is the main program of the child process, and `messages` defines the messages between the two.
"""
