"""The lease protocol as an explicit-state model: every order of events within small bounds is tried, not sampled.

`states` what a store holds · `rules` the protocol's choices as data, right ones and well-known wrong ones · `verbs` what a store does ·
`world` workers, messages and mishaps · `invariants` what must never happen · `search` breadth first: a counterexample is a shortest one ·
`tidy` what may be forgotten · `traces` the counterexamples as steps that a real broker can be put through · `export` a path of the search
as a trace · `replay` a trace on the model · `source` a trace as text · `report` what is searched.

`python -m tests.protocol_model` prints what was searched and found; `--full` takes the larger worlds.
"""
