"""What bad input gets: one table of input, error, and what its message says. What is wrong, which one it is, and what to do.

The checkers would refuse most of it before it runs; what they say is tested in tests/typing. Here it has come past them.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from taskflow import (
    BrokerUnavailable,
    CodecError,
    DeclarationError,
    EncodeError,
    EnqueueFailed,
    InvalidJobId,
    JobCancelled,
    JobFailed,
    JobHandle,
    KeyConflict,
    ResultExpired,
    StoreFull,
    TaskflowError,
    TooLarge,
    UnknownJob,
    configure,
    current_job,
    enqueue,
    enqueue_sync,
    job,
    run_sync,
)
from taskflow.app.settings import Settings
from taskflow.model.ids import id_text
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add as typed_add, fail
from tests.unit.app.watched import Watched

add: Any = typed_add
any_job: Any = job
any_enqueue: Any = enqueue


@dataclass
class Address:
    lines: list[str]


@dataclass
class User:
    name: str
    address: Address


@job
async def invite(user: User) -> None: ...


@job
async def take(anything: Any) -> None: ...


@dataclass
class Cat:
    name: str


@dataclass
class Dog:
    name: str


class Unknown:
    pass


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# --- arguments ------------------------------------------------------------------------------------------------------


async def an_argument_of_the_wrong_type(bench: Bench) -> None:
    await add.delay("one")


async def a_bool_for_an_int(bench: Bench) -> None:
    await add.delay(True)


async def a_wrong_type_deep_inside(bench: Bench) -> None:
    await invite.delay(User("Ada", Address(["12 Row", 7])))  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def another_class(bench: Bench) -> None:
    await invite.delay({"name": "Ada"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def too_many_arguments(bench: Bench) -> None:
    await add.delay(1, 2, 3)


async def too_few_arguments(bench: Bench) -> None:
    await add.delay()


async def an_unknown_argument(bench: Bench) -> None:
    await add.delay(1, z=2)


async def an_argument_given_twice(bench: Bench) -> None:
    await add.delay(1, x=2)


async def an_option_among_the_arguments(bench: Bench) -> None:
    await add.delay(1, timeout=5)


async def an_argument_when_bound(bench: Bench) -> None:
    add.bind("one")


async def an_argument_from_sync_code(bench: Bench) -> None:
    await asyncio.to_thread(add.delay_sync, "one")


# --- values ---------------------------------------------------------------------------------------------------------


async def a_value_without_a_form(bench: Bench) -> None:
    await take.delay([1, {"user": Unknown()}])


async def a_function(bench: Bench) -> None:
    await take.delay(print)


async def a_lone_surrogate(bench: Bench) -> None:
    await take.delay({"name": ["\ud800"]})


async def a_value_too_large(bench: Bench) -> None:
    await take.delay(bytes(1 << 21))


async def a_value_too_deep(bench: Bench) -> None:
    await take.delay(nested(70))


async def a_value_without_an_end(bench: Bench) -> None:
    value: list[Any] = []
    value.append(value)
    await take.delay(value)


# --- declarations ---------------------------------------------------------------------------------------------------


async def an_ambiguous_annotation(bench: Bench) -> None:
    @job(name="ambiguous")
    async def ambiguous(x: list[int] | list[str]) -> None: ...


async def an_annotation_without_a_form(bench: Bench) -> None:
    @job(name="formless")
    async def formless(user: Unknown) -> None: ...


async def a_result_without_a_form(bench: Bench) -> None:
    @job(name="formless result")
    async def formless() -> Unknown:
        return Unknown()


async def a_name_registered_twice(bench: Bench) -> None:
    @job(name="taken")
    async def first() -> None: ...

    @job(name="taken")
    async def second() -> None: ...


async def a_function_inside_a_function(bench: Bench) -> None:
    @job
    async def inner() -> None: ...


async def a_generator(bench: Bench) -> None:
    async def yields() -> Any:
        yield 1

    any_job(name="yields")(yields)


async def no_function(bench: Bench) -> None:
    any_job("a name")


async def an_alias_that_is_one_text(bench: Bench) -> None:
    async def renamed() -> None: ...

    any_job(name="renamed", aliases="old")(renamed)


async def a_name_of_the_wrong_type(bench: Bench) -> None:
    async def named() -> None: ...

    any_job(name=7)(named)


async def an_empty_name(bench: Bench) -> None:
    @job(name="")
    async def named() -> None: ...


async def an_unknown_option_of_the_decorator(bench: Bench) -> None:
    async def typo() -> None: ...

    any_job(name="typo", max_attempt=3)(typo)


async def a_wrong_option_of_the_decorator(bench: Bench) -> None:
    @job(name="too high", priority=101)
    async def too_high() -> None: ...


async def a_policy_of_no_exceptions(bench: Bench) -> None:
    async def policy() -> None: ...

    any_job(name="policy", retry_on=("ValueError",))(policy)


async def a_back_off_of_seconds(bench: Bench) -> None:
    async def seconds() -> None: ...

    any_job(name="seconds", retry=5)(seconds)


# --- options --------------------------------------------------------------------------------------------------------


def options(**given: Any) -> Callable[[Bench], Awaitable[None]]:
    async def with_these_options(bench: Bench) -> None:
        await add.options(**given).delay(1)

    return with_these_options


# --- loops ----------------------------------------------------------------------------------------------------------


async def delay_outside_of_a_loop(bench: Bench) -> None:
    await asyncio.to_thread(lambda: add.delay(1).send(None))


async def delay_sync_inside_of_a_loop(bench: Bench) -> None:
    add.delay_sync(1)


async def enqueue_sync_inside_of_a_loop(bench: Bench) -> None:
    enqueue_sync([])


async def run_sync_inside_of_a_loop(bench: Bench) -> None:
    run_sync(add.delay(1))


async def current_job_outside_of_one(bench: Bench) -> None:
    current_job()


# --- enqueue --------------------------------------------------------------------------------------------------------


async def a_single_call(bench: Bench) -> None:
    await any_enqueue(add.bind(1))


async def jobs_instead_of_calls(bench: Bench) -> None:
    await any_enqueue([add])


async def nothing_to_iterate(bench: Bench) -> None:
    await any_enqueue(5)


async def a_bad_call_among_good_ones(bench: Bench) -> None:
    await enqueue(add.bind(n) for n in (1, "two"))


async def a_key_that_is_taken(bench: Bench) -> None:
    await add.options(key="k").delay(1)
    await add.options(key="k", on_conflict="raise").delay(1)


# --- results --------------------------------------------------------------------------------------------------------


async def the_result_of_an_unknown_job(bench: Bench) -> None:
    await JobHandle.of("01a20e69-e073-7000-9acc-49abe1cd4c9a").result()


async def an_id_that_is_none(bench: Bench) -> None:
    JobHandle.of("job-17")


async def the_result_of_an_expired_job(bench: Bench) -> None:
    handle = await add.options(keep_result=1).delay(1)
    await bench.run_all()
    await bench.pass_time(2)
    await handle.result()


async def the_result_of_a_failed_job(bench: Bench) -> None:
    handle = await fail.options(max_attempts=1).delay("by design")
    await bench.run_all()
    await handle.result()


async def the_result_of_a_cancelled_job(bench: Bench) -> None:
    handle = await add.delay(1)
    await handle.cancel()
    await handle.result()


async def a_result_that_does_not_come(bench: Bench) -> None:
    await (await add.delay(1)).result(timeout=0)


# --- stores ---------------------------------------------------------------------------------------------------------


async def a_store_that_is_away(bench: Bench) -> None:
    away = Watched(bench.broker)
    away.is_away = True
    with bench.app.using(away.as_broker):
        configure(enqueue_timeout=0.05)
        await add.delay(1)


async def a_store_that_is_deaf(bench: Bench) -> None:
    deaf = Watched(bench.broker)
    deaf.gate.clear()
    with bench.app.using(deaf.as_broker):
        configure(enqueue_timeout=0.05)
        await add.delay(1)


async def a_status_of_a_store_that_is_away(bench: Bench) -> None:
    handle = await add.delay(1)
    away = Watched(bench.broker)
    away.is_away = True
    with bench.app.using(away.as_broker):
        configure(enqueue_timeout=0.05)
        await handle.status()


async def a_cancel_of_a_store_that_is_away(bench: Bench) -> None:
    handle = await add.delay(1)
    away = Watched(bench.broker)
    away.is_away = True
    with bench.app.using(away.as_broker):
        configure(enqueue_timeout=0.05)
        await handle.cancel()


async def a_full_store(bench: Bench) -> None:
    class Full(Watched):
        async def enqueue(self, envelopes: Any) -> Any:
            raise StoreFull("the store is full: let workers catch up")

    with bench.app.using(Full(bench.broker).as_broker):
        await add.delay(1)


# --- the table ------------------------------------------------------------------------------------------------------

NAME = typed_add.name


class Case(NamedTuple):
    do: Callable[[Bench], Awaitable[None]]
    error: type[BaseException]
    says: tuple[str, ...]
    called: str = ""

    @property
    def id(self) -> str:
        return self.called or self.do.__name__


def case(do: Callable[[Bench], Awaitable[None]], error: type[BaseException], *says: str) -> Case:
    return Case(do, error, says)


def option(error: type[BaseException], *says: str, **given: Any) -> Case:
    return Case(options(**given), error, says, called=f"options {str(given)[:60]}")


TABLE = [
    case(an_argument_of_the_wrong_type, EncodeError, "x: expected int, got str", NAME),
    case(a_bool_for_an_int, EncodeError, "x: expected int, got bool", NAME),
    case(a_wrong_type_deep_inside, EncodeError, "user.address.lines[1]: expected str, got int", invite.name),
    case(another_class, EncodeError, "user: expected", "User", "got dict", invite.name),
    case(too_many_arguments, EncodeError, "at most 2 positional arguments, got 3", NAME),
    case(too_few_arguments, EncodeError, "x: is a required argument and was not given", NAME),
    case(an_unknown_argument, EncodeError, "z: is not an argument of this function", "its arguments are x, y", NAME),
    case(an_argument_given_twice, EncodeError, "x: is given twice", NAME),
    case(an_option_among_the_arguments, EncodeError, "timeout: is not an argument of this function", NAME),
    case(an_argument_when_bound, EncodeError, "x: expected int, got str", NAME),
    case(an_argument_from_sync_code, EncodeError, "x: expected int, got str", NAME),
    case(a_value_without_a_form, EncodeError, "anything[1]['user']", "Unknown", take.name),
    case(a_function, EncodeError, "anything", "builtin_function_or_method", take.name),
    case(a_lone_surrogate, EncodeError, "anything['name'][0]", "surrogate", take.name),
    case(a_value_too_large, TooLarge, "2,097,", "the limit is 1,048,576", "send a reference", take.name),
    case(a_value_too_deep, TooLarge, "anything", "deeper than the limit allows", "send a flatter value", take.name),
    case(a_value_without_an_end, TooLarge, "anything", "deeper than the limit allows", take.name),
    case(an_ambiguous_annotation, DeclarationError, "ambiguous", "x: ", "list"),
    case(an_annotation_without_a_form, DeclarationError, "formless", "user: ", "Unknown", "make it a dataclass"),
    case(a_result_without_a_form, DeclarationError, "formless result", "return: ", "Unknown", "make it a dataclass"),
    case(a_name_registered_twice, DeclarationError, "called 'taken'", "first)", "second)", "test_bad_input.py:", "another name="),
    case(a_function_inside_a_function, DeclarationError, "test_bad_input.py:", "inner", "set name="),
    case(a_generator, DeclarationError, "test_bad_input.py:", "yields", "return a list"),
    case(no_function, DeclarationError, "takes a function", "'a name'", "@job(name='a name')"),
    case(an_alias_that_is_one_text, DeclarationError, "renamed", "aliases='old'", "aliases=('old',)"),
    case(a_name_of_the_wrong_type, DeclarationError, "name=7", "expected a str"),
    case(an_empty_name, DeclarationError, "job name ''", "1 to 200 printable characters"),
    case(an_unknown_option_of_the_decorator, DeclarationError, "typo", "unknown option max_attempt=", "did you mean max_attempts=?"),
    case(a_wrong_option_of_the_decorator, DeclarationError, "too_high", "priority=101", "-100 to 100"),
    case(a_policy_of_no_exceptions, DeclarationError, "policy", "retry_on=('ValueError',)", "exception classes"),
    case(a_back_off_of_seconds, DeclarationError, "seconds", "retry=5", "a Backoff"),
    option(TypeError, "unknown option max_attempt=", "did you mean max_attempts=?", max_attempt=3),
    option(TypeError, "unknown option colour=", "options are queue, priority", colour="red"),
    option(ValueError, "priority=101", "a whole number from -100 to 100", priority=101),
    option(ValueError, "priority=-101", "a whole number from -100 to 100", priority=-101),
    option(TypeError, "priority=5.0", "expected an int", priority=5.0),
    option(TypeError, "priority=True", "expected an int", priority=True),
    option(ValueError, "at=", "is naive", "datetime.now(UTC)", at=datetime(2030, 1, 1)),  # the point of it is that it is naive
    option(TypeError, "at=60", "an aware datetime", "after=", at=60),
    option(ValueError, "after= and at=", "give one of them", at=datetime(2030, 1, 1, tzinfo=UTC), after=1),
    option(ValueError, "after=-1", "0 to 3,155,760,000 seconds", after=-1),
    option(ValueError, "after=inf", "0 to 3,155,760,000 seconds", after=float("inf")),
    option(ValueError, "after=nan", "0 to 3,155,760,000 seconds", after=float("nan")),
    option(ValueError, "after=1e+300", "0 to 3,155,760,000 seconds", after=1e300),
    option(TypeError, "timeout='5'", "a number or a timedelta", timeout="5"),
    option(ValueError, "expires=", "0 to 3,155,760,000 seconds", expires=timedelta(seconds=-5)),
    option(ValueError, "max_attempts=0", "expected at least 1", max_attempts=0),
    option(ValueError, "max_attempts=1000000000000", "1 to 1,000,000", max_attempts=10**12),
    option(TypeError, "max_attempts='3'", "expected an int", max_attempts="3"),
    option(ValueError, "queue 'no spaces'", "A-Z a-z 0-9 _ . - : /", queue="no spaces"),
    option(ValueError, "queue 'a,b'", "A-Z a-z 0-9 _ . - : /", queue="a,b"),
    option(ValueError, "queue 'a=b'", "A-Z a-z 0-9 _ . - : /", queue="a=b"),
    option(ValueError, "key= has 201 bytes", "1 to 200", key="k" * 201),
    option(ValueError, 'key="" removes a key, but there is none', "leave key= out", key=""),
    option(ValueError, "key=", "lone surrogate", key="\ud800"),
    option(TypeError, "key=7", "expected a str", key=7),
    option(ValueError, "on_conflict='ignore'", '"keep", "replace" or "raise"', on_conflict="ignore"),
    option(TypeError, "headers={'user': 7}", "header names and values must be str", headers={"user": 7}),
    option(TypeError, "headers=[]", "expected a dict", headers=[]),
    option(TypeError, "tags='a'", "tags=('a',)", tags="a"),
    option(TypeError, "tags=(7,)", "expected a tuple of texts", tags=(7,)),
    option(TypeError, "tags={'a'}", "expected a tuple of texts", tags={"a"}),
    option(ValueError, "tag 'a b'", "A-Z a-z 0-9 _ . - : /", tags=("a b",)),
    option(ValueError, "tag ''", "1 to 100", tags=("",)),
    option(ValueError, "tag 'xxx", "1 to 100", tags=("x" * 101,)),
    option(ValueError, "tag 'a\\n'", "1 to 100", tags=("a\n",)),
    option(ValueError, "11 tags", "at most 10", tags=tuple(map(str, range(11)))),
    option(ValueError, "headers={'tf-trace'", "reserved for taskflow", headers={"tf-trace": "1"}),
    option(ValueError, "headers have 5001 bytes", "4096", headers={"a": "b" * 5_000}),
    option(TypeError, "retry=5", "expected a Backoff", retry=5),
    case(delay_outside_of_a_loop, RuntimeError, "no event loop is running", ".delay_sync()", "run_sync()"),
    case(delay_sync_inside_of_a_loop, RuntimeError, "delay_sync()", "inside a running event loop", "await .delay()"),
    case(enqueue_sync_inside_of_a_loop, RuntimeError, "enqueue_sync()", "await enqueue()"),
    case(run_sync_inside_of_a_loop, RuntimeError, "run_sync()", "use await there"),
    case(current_job_outside_of_one, TaskflowError, "current_job()", "outside of a running job", "call it in a job's function"),
    case(a_single_call, TypeError, NAME, "an iterable of calls", "[...]", ".delay(...)"),
    case(jobs_instead_of_calls, EnqueueFailed, NAME, "expected calls made by .bind(...)"),
    case(nothing_to_iterate, TypeError, "enqueue() got 5", "job.bind(...)"),
    case(a_bad_call_among_good_ones, EnqueueFailed, "x: expected int, got str", NAME, "1 call(s) were", ".handles"),
    case(a_key_that_is_taken, KeyConflict, NAME, "the live job", "its key 'k'", 'on_conflict="keep"'),
    case(the_result_of_an_unknown_job, UnknownJob, "not know job 01a20e69-e073-7000-9acc-49abe1cd4c9a"),
    case(an_id_that_is_none, InvalidJobId, "'job-17' is not a job id", "such as '01a20e69-e073-7000-9acc-49abe1cd4c9a'"),
    case(the_result_of_an_expired_job, ResultExpired, NAME, "no longer kept", "keep_result="),
    case(the_result_of_a_failed_job, JobFailed, fail.name, "attempt 1 of 1", "ValueError: by design"),
    case(the_result_of_a_cancelled_job, JobCancelled, NAME, "was cancelled"),
    case(a_result_that_does_not_come, TimeoutError, NAME, "still ready after 0 s"),
    case(a_store_that_is_away, BrokerUnavailable, "away for 0.05 s", "the store is away", "Check that the broker runs", "enqueue_timeout="),
    case(a_store_that_is_deaf, BrokerUnavailable, "away for 0.05 s", "does not answer", "Check that the broker runs"),
    case(a_status_of_a_store_that_is_away, BrokerUnavailable, "away for 0.05 s"),
    case(a_cancel_of_a_store_that_is_away, BrokerUnavailable, "away for 0.05 s"),
    case(a_full_store, StoreFull, "full", "let workers catch up"),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)
async def test_bad_input(bench: Bench, case: Case) -> None:
    with pytest.raises(case.error) as caught:
        await case.do(bench)

    message = str(caught.value)
    assert [fragment for fragment in case.says if fragment not in message] == [], message
    assert "\n" not in message, "a message is one line"
    assert leads_to_the_caller(caught.value, case.do.__name__)


def leads_to_the_caller(error: BaseException, function: str) -> bool:
    """One of its lines is that which gave the bad input."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == function and frame.filename == __file__ for frame in frames)


def test_timeout_is_five_seconds_by_default() -> None:
    assert Settings().enqueue_timeout == 5.0


@pytest.mark.parametrize(("error", "also"), [(EncodeError, TypeError), (DeclarationError, TypeError), (UnknownJob, LookupError)])
def test_errors_are_of_one_tree_and_of_pythons_kinds(error: type[Exception], also: type[Exception]) -> None:
    assert issubclass(error, TaskflowError)
    assert issubclass(error, also)
    assert issubclass(TooLarge, EncodeError)
    assert issubclass(EncodeError, CodecError)
    assert issubclass(BrokerUnavailable, ConnectionError)


async def test_bad_input_sends_nothing(bench: Bench) -> None:
    """Nor does it hurt who sends at the same time."""
    answers: tuple[Any, ...] = await asyncio.gather(add.delay(1), add.delay("one"), add.delay(2), return_exceptions=True)
    assert isinstance(answers[1], EncodeError)
    assert [id_text(lease.envelope.id) for lease in await bench.claim()] == [answers[0].id, answers[2].id]
