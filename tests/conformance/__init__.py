"""One behavioural suite that every broker passes: each clause of `taskflow.broker.protocol` and `admin` has a test named after it.

`test_<clause>` or `test_<clause>__<more>` claims one clause, on each kind of store in `tests.support.harnesses`. The package also has:
`moves`, the table of legal moves, one by one · `traces`, counterexamples of the model · `machine`, random orders of operations and mishaps,
compared with the reference broker · `mutants`, broken brokers, each of which must fail its clauses · `failpoints`, a process killed at
every operation.

`python -m tests.conformance` runs every test on every broker; `python -m tests.conformance.machine --help` describes the long form.
"""
