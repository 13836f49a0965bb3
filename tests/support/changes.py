"""Changes to the source of functions, which tests must detect."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any, NamedTuple

import pytest


class Change(NamedTuple):
    """A change to a function's source."""

    owner: Any
    function: str
    before: str
    after: str


class Changed(NamedTuple):
    """A changed function. `because` explains the harm of the defect, and `breaks` names the clauses of the contract that it breaks."""

    name: str
    because: str
    changes: tuple[Change, ...]
    breaks: frozenset[str] = frozenset()

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, owner in {(change.function, change.owner) for change in self.changes}:
            monkeypatch.setattr(owner, name, self._changed(owner, name))

    def _changed(self, owner: Any, name: str) -> Any:
        function = getattr(owner, name)
        text = textwrap.dedent(inspect.getsource(function))
        for change in self.changes:
            if (change.owner, change.function) == (owner, name):
                assert text.count(change.before) == 1, f"{name} has changed: write the mutant anew"
                text = text.replace(change.before, change.after)
        made = dict[str, Any]()
        exec(compile(f"from __future__ import annotations\n{text}", name, "exec"), vars(sys.modules[function.__module__]), made)
        return made[name]
