"""Which batch jobs a declaration accepts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from taskflow import Batch, DeclarationError, EncodeError, Failure, JobContext, job, preset
from taskflow.app.app import App, default_app
from taskflow.app.job_type import Registry

any_job: Any = job
BATCH = Batch(size=10, within=timedelta(seconds=2))


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(default_app(), "registry", Registry())
    return default_app()


@pytest.mark.parametrize(
    "given", [(0, 1.0), (True, 1.0), (10_001, 1.0), ("10", 1.0), (10, -1), (10, 3_601), (10, "1 s"), (10, timedelta(days=1))]
)
def test_a_batch_has_bounds(given: Any) -> None:
    with pytest.raises(ValueError, match=r"Batch\((size|within)="):
        Batch(*given)


async def no_list(numbers: int) -> list[int]:
    return [numbers]


async def no_result(numbers: list[int]) -> None: ...


async def with_context(ctx: JobContext, numbers: list[int]) -> list[int]:
    return numbers


async def two_lists(numbers: list[int], others: list[int]) -> list[int]:
    return numbers


async def by_name(*, numbers: list[int]) -> list[int]:
    return numbers


async def right(numbers: list[int]) -> list[int | str | Failure]:
    return [*numbers]


def plain(numbers: list[int]) -> list[int]:
    return numbers


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (no_list, {}, "numbers must be a list with one element for each job"),
        (no_result, {}, "the function must return a list"),
        (with_context, {}, "must take one list"),
        (two_lists, {}, "must take one list"),
        (by_name, {}, "must take one list"),
        (right, {"batch": 10}, "expected a Batch"),
        (right, {"runs_in": "process"}, 'cannot be combined with runs_in="process"'),
        (plain, {"timeout_raises": True}, "cannot be combined with .* timeout_raises=True"),
    ],
)
def test_a_function_that_cannot_be_a_batch_job_is_refused_at_its_declaration(function: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        any_job(name="batch.wrong", **{"batch": BATCH, **options})(function)


def test_a_preset_has_no_batch() -> None:
    with pytest.raises(DeclarationError, match="batch= belongs to one job"):
        preset(batch=BATCH)  # type: ignore[call-arg]


def test_a_call_has_the_type_and_the_key_of_one_element() -> None:
    made = any_job(name="batch.right", batch=BATCH, key="{numbers}")(right)
    assert made.bind(7).key == "7"
    with pytest.raises(EncodeError, match="numbers"):
        made.bind([7])
    assert made.codec.decode_result(made.codec.encode_result("text")) == "text"
    assert made.batch == BATCH


def test_a_failure_has_an_error() -> None:
    assert isinstance(Failure("no").error, RuntimeError)
    error = OSError("away")
    assert Failure(error).error is error
    assert repr(Failure(error)) == "Failure(OSError('away'))"
    with pytest.raises(TypeError, match="expected an exception or a str"):
        Failure(7)  # type: ignore[arg-type]
