"""Child processes for jobs with ``runs_in="process"``.

`pool` keeps them, in the worker; `process` is one child as the worker sees it; `spawn` starts it; `output` reads what it prints;
`death` has the errors. `child` is the main program on the other side, and `wire` the messages between both.
"""
