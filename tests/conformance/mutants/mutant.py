"""The base class of every mutant."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from tests.reference.admin import ReferenceStore
from tests.support.harnesses import ReferenceHarness


class Mutant(ReferenceStore, ABC):
    """A store with one rule broken. `breaks` names the clauses that must notice."""

    breaks: ClassVar[frozenset[str]]
    because: ClassVar[str]


def harness_of(mutant: type[Mutant]) -> type[ReferenceHarness]:
    """Return the kind of store that has this defect."""
    return type(f"{mutant.__name__}StoreHarness", (ReferenceHarness,), {"name": mutant.__name__, "store_class": mutant})
