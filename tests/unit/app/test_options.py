"""Options of @job and of `.options()`: what None means, which numbers are accepted, and how an option of another library is answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from taskflow import Backoff, DeclarationError, EnqueueOptions, Retry, Snooze, job
from taskflow.app.job import Declared
from taskflow.app.options import DECORATOR_ONLY
from taskflow.model.rules import MAX_DURATION
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add as typed_add

add: Any = typed_add
any_job: Any = job
DURATIONS_OF_BOTH = ("timeout", "expires", "keep_result")


def declared(**options: Any) -> Declared[..., Any]:
    """Return a job with these options of the decorator."""

    def function() -> None: ...

    made: Declared[..., Any] = any_job(name="tests.options", **options)(function)
    return made


# --- None ------------------------------------------------------------------------------------------------------------


def test_none_is_not_given_for_every_option_of_a_call() -> None:
    nothing: dict[str, Any] = dict.fromkeys(EnqueueOptions.__annotations__)
    before, after = add.bind(1).envelope, add.options(**nothing).bind(1).envelope
    for field in type(before).__struct_fields__:
        if field != "id":
            assert getattr(after, field) == getattr(before, field), field


@pytest.mark.parametrize("option", [*DECORATOR_ONLY, "queue", "priority", "max_attempts", "retry", *DURATIONS_OF_BOTH])
def test_none_is_not_given_for_every_option_of_the_decorator(option: str) -> None:
    def function() -> None: ...

    function.__qualname__ = "test_options_function"  # as if it were defined in the module
    made: Declared[..., Any] = any_job(**{option: None})(function)
    plain: Declared[..., Any] = any_job(function)
    assert (made.name, made.policy, made.aliases, made.runs_in) == (plain.name, plain.policy, plain.aliases, plain.runs_in)
    assert made._current().options == plain._current().options


# --- numbers ---------------------------------------------------------------------------------------------------------

WRONG_SECONDS: list[tuple[Any, type[Exception], str]] = [
    (math.nan, ValueError, "nan: expected 0 to 3,155,760,000 seconds"),
    (math.inf, ValueError, "inf: expected 0 to 3,155,760,000 seconds"),
    (MAX_DURATION + 1, ValueError, "expected 0 to 3,155,760,000 seconds, a hundred years"),
    (10**5_000, ValueError, "=<int>: expected 0 to 3,155,760,000 seconds"),
    (timedelta.max, ValueError, "expected 0 to"),
    (True, TypeError, "True: expected seconds, as a number or a timedelta"),
    ("5", TypeError, "'5': expected seconds"),
]


@pytest.mark.parametrize(("value", "error", "says"), WRONG_SECONDS, ids=[str(number) for number in range(len(WRONG_SECONDS))])
@pytest.mark.parametrize("option", ["after", *DURATIONS_OF_BOTH])
def test_a_duration_that_is_none_is_refused_at_the_call(option: str, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        add.options(**{option: value})
    assert str(caught.value).startswith(f"{option}=")
    assert says in str(caught.value)
    if option in DURATIONS_OF_BOTH:
        with pytest.raises(DeclarationError) as of_decorator:
            declared(**{option: value})
        assert str(of_decorator.value).endswith(str(caught.value))


WRONG_COUNTS: list[tuple[str, Any, type[Exception], str]] = [
    ("priority", True, TypeError, "priority=True: expected an int"),
    ("priority", 1.0, TypeError, "priority=1.0: expected an int"),
    ("priority", 10**5_000, ValueError, "priority=<int>: expected a whole number from -100 to 100"),
    ("max_attempts", math.inf, TypeError, "max_attempts=inf: expected an int"),
    ("max_attempts", 0, ValueError, "max_attempts=0: expected at least 1"),
    ("max_attempts", 10**5_000, ValueError, "max_attempts=<int>: expected 1 to 1,000,000"),
]


@pytest.mark.parametrize(("option", "value", "error", "says"), WRONG_COUNTS, ids=[str(number) for number in range(len(WRONG_COUNTS))])
def test_a_count_that_is_none_is_refused_at_the_call(option: str, value: Any, error: type[Exception], says: str) -> None:
    for refused, make in ((error, add.options), (DeclarationError, declared)):
        with pytest.raises(refused) as caught:
            make(**{option: value})
        assert says in str(caught.value)


class Importance(IntEnum):
    HIGH = 5


def test_a_member_of_an_int_enum_is_sent_as_its_number() -> None:
    envelope = add.options(priority=Importance.HIGH, max_attempts=Importance.HIGH).bind(1).envelope
    assert (type(envelope.priority), type(envelope.max_attempts)) == (int, int)
    assert (envelope.priority, envelope.max_attempts) == (5, 5)


class Word(str, Enum):  # noqa: UP042  # whose text is "Word.HIGH", unlike that of a StrEnum
    HIGH = "high"
    NAME = "tests.str_enums.named"
    BEFORE = "tests.str_enums.before"


@job(name=Word.NAME, aliases=(Word.BEFORE,), queue=Word.HIGH)
async def named() -> str:
    return "done"


def test_declared_enum_members_become_plain_text() -> None:
    """A plain str replaces the member, in the job and in each envelope."""
    call = named.options(key=Word.HIGH, headers={Word.HIGH: Word.HIGH})
    envelope = call.bind().envelope
    [(header, value)] = envelope.headers.items()
    for text in (named.name, *named.aliases, named.queue, call.key, envelope.queue, envelope.job, header, value):
        assert type(text) is str
    assert (str(named.name), str(envelope.queue), str(value)) == (Word.NAME.value, "high", "high")


@pytest.mark.parametrize("field", ["base", "factor", "max"])
@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (math.nan, ValueError, "nan): expected a finite number, 0 or more"),
        (math.inf, ValueError, "inf): expected"),
        (-1, ValueError, "-1): expected"),
        (10**400, ValueError, "expected a finite number"),
        (10**5_000, ValueError, "=<int>): expected a finite number"),
        (True, TypeError, "True): expected a number"),
        ("2", TypeError, "'2'): expected a number"),
        (None, TypeError, "None): expected a number"),
    ],
    ids=["nan", "inf", "negative", "beyond floats", "beyond digits", "bool", "str", "None"],
)
def test_a_number_of_a_backoff_that_cannot_be_waited_is_refused(field: str, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        Backoff(**{field: value})
    assert str(caught.value).startswith(f"Backoff({field}=")
    assert says in str(caught.value)


def test_a_backoffs_jitter_is_a_bool() -> None:
    with pytest.raises(TypeError, match=r"Backoff\(jitter=1\): expected True or False"):
        Backoff(jitter=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_backoff_of_huge_whole_numbers_is_sent_to_every_store(bench: Bench) -> None:
    """No store's format has integers beyond 64 bits."""
    handle = await add.options(retry=Backoff(base=2**70, factor=10**30, max=2**80)).delay(1)
    lease = await bench.lease_of(handle)
    assert lease.envelope.retry == Backoff(base=2.0**70, factor=1e30, max=2.0**80)


# --- at= -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=ZoneInfo("America/New_York")),
        datetime(2256, 1, 1, tzinfo=UTC),
        datetime.now(UTC) + timedelta(days=36_526),
    ],
    ids=["last-elsewhere", "2256", "a-day-too-far"],
)
def test_an_instant_more_than_a_hundred_years_away_is_refused(at: datetime) -> None:
    with pytest.raises(ValueError, match=r"^at=datetime\.datetime\(.*: expected a time within a hundred years from now, before 2\d\d\d-"):
        add.options(at=at)


@pytest.mark.parametrize(
    "options", [{"queue": "x" * 10**6}, {"headers": {"a": 10**999}}, {"headers": {"x" * 10**6: 1}}], ids=lambda one: next(iter(one))
)
def test_an_error_about_a_long_value_shows_its_head(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        add.options(**options)
    assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("signal", [Retry, Snooze])
def test_a_run_cannot_ask_for_a_wait_beyond_a_hundred_years(signal: Callable[..., Exception]) -> None:
    for after in (MAX_DURATION + 1, math.nan, math.inf, 10**5_000):
        with pytest.raises(ValueError, match=r"^after=.*: expected 0 to 3,155,760,000 seconds, a hundred years"):
            signal(after=after)


# --- names -----------------------------------------------------------------------------------------------------------

OF_OTHERS: list[tuple[str, str]] = [
    ("max_retries", "it is max_attempts= here, which counts the first run too"),
    ("countdown", "it is after= here"),
    ("eta", "it is at= here"),
    ("unique", "it is key= here"),
    ("autoretry_for", "it is retry_on= here"),
    ("result_ttl", "it is keep_result= here"),
    ("ttl", "it is expires= here"),
    ("bind", "annotate the function's first parameter with JobContext"),
    ("rate_limit", "it is limits=[Rate(100, per=60)] here"),
    ("kwargs", "pass the job's arguments to .delay(...)"),
]


@pytest.mark.parametrize(("name", "answer"), OF_OTHERS)
def test_an_option_of_another_library_is_answered_with_ours(name: str, answer: str) -> None:
    with pytest.raises(TypeError) as caught:
        add.options(**{name: 5})
    assert str(caught.value).startswith(f"unknown option {name}=: ")
    assert answer in str(caught.value)
    with pytest.raises(DeclarationError) as of_decorator:
        declared(**{name: 5})
    assert str(of_decorator.value).startswith("@job on ")
    assert str(of_decorator.value).endswith(str(caught.value))


@pytest.mark.parametrize("name", ["after", "at", "headers"])
def test_the_decorator_says_that_an_option_belongs_to_a_call(name: str) -> None:
    with pytest.raises(DeclarationError, match=rf"unknown option {name}=: pass it with a call, as in \.options\({name}=\.\.\.\)"):
        declared(**{name: "x"})


@pytest.mark.parametrize("name", ["name", "retry_on", "discard_on", "aliases", "runs_in", "stop_grace", "timeout_raises", "keep_arguments"])
def test_a_call_says_that_an_option_belongs_to_the_job(name: str) -> None:
    with pytest.raises(TypeError, match=rf"unknown option {name}=: pass it to the decorator, as in @job\({name}=\.\.\.\)"):
        add.options(**{name: "x"})
