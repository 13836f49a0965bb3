"""What @job makes of a function, and which functions it refuses."""

from __future__ import annotations

import functools
import inspect
import typing
from typing import Any

import pytest

from taskflow import DeclarationError, InvalidJobId, JobContext, JobHandle, TaskflowError, job

any_job: Any = job


@job(name="tests.declaring.documented")
async def documented(ctx: JobContext, day: int, *, unit: str = "h") -> str:
    """Say it."""
    return f"{day}{unit}"


@job(name="tests.declaring.plain")
def plain(path: str) -> str:
    return path


# --- a job looks like its function ------------------------------------------------------------------------------------


def test_a_job_has_its_functions_name_and_docstring() -> None:
    assert documented.__name__ == documented.__qualname__ == "documented"
    assert documented.__doc__ == "Say it."
    assert documented.__module__ == __name__
    assert documented.__wrapped__ is documented.function
    assert inspect.unwrap(documented) is documented.function
    assert inspect.getsourcefile(inspect.unwrap(documented)) == __file__
    assert plain.__doc__ is None


def test_a_jobs_signature_is_that_of_its_callers() -> None:
    assert str(inspect.signature(documented)) == "(day: 'int', *, unit: 'str' = 'h') -> 'str'"
    assert str(inspect.signature(plain)) == "(path: 'str') -> 'str'"
    assert typing.get_type_hints(plain) == {"path": str, "return": str}


def test_a_copy_with_options_looks_like_the_function_too() -> None:
    copied = documented.options(queue="other")
    assert (copied.__name__, copied.__doc__, copied.__wrapped__) == ("documented", "Say it.", documented.function)
    assert inspect.signature(copied) == inspect.signature(documented)


def test_an_attribute_of_the_function_hides_none_of_the_jobs() -> None:
    def marked() -> None: ...

    marked.name = "mine"  # type: ignore[attr-defined]
    made = any_job(name="tests.declaring.marked")(marked)
    assert made.name == "tests.declaring.marked"


# --- methods ----------------------------------------------------------------------------------------------------------


class Mailer:
    def send(self, to: str) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @staticmethod
    def check(to: str) -> str:
        return to


METHODS: list[Any] = [Mailer.send, Mailer().send, Mailer.make, vars(Mailer)["make"]]


@pytest.mark.parametrize("method", METHODS, ids=["in its class", "bound", "bound to the class", "a classmethod"])
def test_a_method_is_refused_as_a_job(method: Any) -> None:
    with pytest.raises(DeclarationError, match=r"methods cannot be jobs.*make it a module-level function") as caught:
        any_job(name="tests.declaring.method")(method)
    assert "test_declaring.py:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_static_method_is_declared_below_its_decorator() -> None:
    with pytest.raises(DeclarationError, match=r"write @staticmethod above @job"):
        any_job(name="tests.declaring.static")(vars(Mailer)["check"])

    class Namespace:
        @staticmethod
        @job(name="tests.declaring.namespace")
        def check(to: str) -> str:
            return to

    assert Namespace.check("a") == "a"
    assert Namespace.check.bind("a").envelope.job == "tests.declaring.namespace"


def test_a_function_with_a_parameter_called_self_is_no_method() -> None:
    def about(self: str) -> str:
        return self

    assert any_job(name="tests.declaring.about")(about)("me") == "me"


def test_an_async_function_in_a_plain_wrapper_is_refused() -> None:
    """It was declared as a plain job, and its coroutine was never awaited."""

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    async def fetch(n: int) -> int:
        return n

    with pytest.raises(DeclarationError, match=r"test_declaring.py:\d+ .*wraps this async function in a plain one.* with `async def`"):
        any_job(name="tests.declaring.wrapped")(logged(fetch))


# --- handles of ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "", "job-17", None, 17, b"0123456789abcdef", "x" * 5_000, ["a"]], ids=lambda each: repr(each)[:20])
def test_a_text_that_is_no_id_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(InvalidJobId, match=r"is not a job id: expected text such as '01a20e69-e073-7000-9acc-49abe1cd4c9a'") as caught:
        JobHandle.of(text)
    assert isinstance(caught.value, TaskflowError)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 400
