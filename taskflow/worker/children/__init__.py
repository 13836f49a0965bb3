"""Child processes for jobs that say ``runs_in="process"``.

`pool` keeps them, in the worker; `process` is one of them as the worker sees it, `spawn` how it is started, `output` what it writes,
`death` why it has died; `child` is the main program of the other side, and `wire` what both speak.
"""
