"""Public errors are shown and stored under the names that users import; every public class pickles, and its annotations resolve."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, get_type_hints

import pytest

import taskflow
from taskflow.worker.run_errors import failure_of

CLASSES = [name for name in taskflow.__all__ if inspect.isclass(getattr(taskflow, name))]
ERRORS = [name for name in CLASSES if issubclass(getattr(taskflow, name), BaseException)]


def public(name: str) -> Any:
    return getattr(taskflow, name)


@pytest.mark.parametrize("name", ERRORS)
def test_a_public_error_is_stored_under_its_public_name(name: str) -> None:
    error = public(name).__new__(public(name))
    assert failure_of(error, attempt=1).type == f"taskflow.{name}"


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_can_be_pickled_by_its_name(name: str) -> None:
    assert pickle.loads(pickle.dumps(public(name))) is public(name)


@pytest.mark.parametrize("name", CLASSES)
def test_the_annotations_of_a_public_class_resolve(name: str) -> None:
    get_type_hints(public(name))


def test_an_error_that_is_not_public_keeps_its_module() -> None:
    from taskflow.model.errors import SessionLost

    assert SessionLost.__module__ == "taskflow.model.errors"
