"""Bad input: one table of input, error, and message. The message says what is wrong, with which value, and what to do.

Type checkers would refuse most of it before it runs; tests/typing tests what they report. Here it has got past them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from taskflow import (
    BrokerUnavailable,
    CodecError,
    DeclarationError,
    EncodeError,
    EnqueueFailed,
    TaskflowError,
    TooLarge,
    UnknownJob,
    configure,
    enqueue,
    job,
)
from taskflow.app.settings import Settings
from taskflow.model.ids import id_text
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add as typed_add
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


class Unknown:
    pass


@job
async def invite(user: User) -> None: ...


@job
async def take(anything: Any) -> None: ...


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def declare(annotation: Any = Any, returns: Any = None, **options: Any) -> Callable[[], object]:
    async def work(x: Any) -> None: ...

    work.__annotations__ = {"x": annotation, "return": returns}
    return lambda: any_job(**{"name": "bad", **options})(work)


def declare_a_generator() -> None:
    async def yields() -> Any:
        yield 1

    any_job(name="yields")(yields)


def options(**given: Any) -> Callable[[], object]:
    return lambda: add.options(**given).delay(1)


TABLE: dict[str, tuple[Callable[[], object], type[BaseException], tuple[str, ...]]] = {
    # arguments
    "another type": (lambda: add.delay("one"), EncodeError, ("x: expected int, got str", add.name)),
    "another type deep inside": (
        lambda: invite.delay(User("Ada", Address(["12 Row", cast(str, 7)]))),
        EncodeError,
        ("user.address.lines[1]: expected str, got int", invite.name),
    ),
    "unknown": (lambda: add.delay(1, z=2), EncodeError, ("z: is not an argument of this function", "its arguments are x, y")),
    "an option": (lambda: add.delay(1, timeout=5), EncodeError, ("timeout: is not an argument of this function", add.name)),
    # values
    "no form": (lambda: take.delay([1, {"user": Unknown()}]), EncodeError, ("anything[1]['user']", "Unknown", take.name)),
    "surrogate": (lambda: take.delay({"name": ["\ud800"]}), EncodeError, ("anything['name'][0]", "surrogate", take.name)),
    "too large": (lambda: take.delay(bytes(1 << 21)), TooLarge, ("2,097,", "the limit is 1,048,576", "send a reference", take.name)),
    "too deep": (lambda: take.delay(nested(70)), TooLarge, ("anything", "deeper than the limit allows", "send a flatter value")),
    # declarations
    "ambiguous": (declare(list[int] | list[str]), DeclarationError, ("bad", "x: ", "list")),
    "annotation without form": (declare(Unknown), DeclarationError, ("bad", "x: ", "Unknown", "make it a dataclass")),
    "result without form": (declare(returns=Unknown), DeclarationError, ("bad", "return: ", "Unknown", "make it a dataclass")),
    "generator": (declare_a_generator, DeclarationError, ("test_bad_input.py:", "yields", "return a list")),
    "no function": (lambda: any_job("a name"), DeclarationError, ("takes a function", "'a name'", "@job(name='a name')")),
    "alias": (declare(aliases="old"), DeclarationError, ("work", "aliases='old'", "aliases=('old',)")),
    "no name": (declare(name=7), DeclarationError, ("name=7", "expected a str")),
    "empty name": (declare(name=""), DeclarationError, ("job name ''", "1 to 200 printable characters")),
    "unknown to @job": (declare(max_attempt=3), DeclarationError, ("work", "unknown option max_attempt=", "did you mean max_attempts=?")),
    "@job(priority)": (declare(priority=101), DeclarationError, ("work", "priority=101", "-100 to 100")),
    "@job(retry_on)": (declare(retry_on=("ValueError",)), DeclarationError, ("work", "retry_on=('ValueError',)", "exception classes")),
    "@job(retry)": (declare(retry=5), DeclarationError, ("work", "retry=5", "a Backoff")),
    # options
    "unknown option": (options(max_attempt=3), TypeError, ("unknown option max_attempt=", "did you mean max_attempts=?")),
    "nothing like it": (options(colour="red"), TypeError, ("unknown option colour=", "options are queue, priority")),
    "priority": (options(priority=-101), ValueError, ("priority=-101", "a whole number from -100 to 100")),
    "naive at": (options(at=datetime(2030, 1, 1)), ValueError, ("at=", "is naive", "datetime.now(UTC)")),
    "at is a number": (options(at=60), TypeError, ("at=60", "an aware datetime", "after=")),
    "at and after": (options(at=datetime(2030, 1, 1, tzinfo=UTC), after=1), ValueError, ("after= and at=", "give only one")),
    "long key": (options(key="k" * 201), ValueError, ("key= has 201 bytes", "1 to 200")),
    "surrogate in key": (options(key="\ud800"), ValueError, ("key=", "lone surrogate")),
    "key is a number": (options(key=7), TypeError, ("key=7", "expected a str")),
    "on_conflict": (options(on_conflict="ignore"), ValueError, ("on_conflict='ignore'", '"keep", "replace" or "raise"')),
    "header": (options(headers={"user": 7}), TypeError, ("headers={'user': 7}", "header names and values must be str")),
    "headers": (options(headers=[]), TypeError, ("headers=[]", "expected a dict")),
    "reserved header": (options(headers={"tf-trace": "1"}), ValueError, ("headers={'tf-trace'", "reserved for taskflow")),
    "tags are a text": (options(tags="a"), TypeError, ("tags='a'", "tags=('a',)")),
    "tag": (options(tags=("a\n",)), ValueError, ("tag 'a\\n'", "1 to 100", "A-Z a-z 0-9 _ . - : /")),
    "many tags": (options(tags=tuple(map(str, range(11)))), ValueError, ("11 tags", "at most 10")),
    "retry": (options(retry=5), TypeError, ("retry=5", "expected a Backoff")),
    # enqueue
    "a single call": (lambda: any_enqueue(add.bind(1)), TypeError, (add.name, "an iterable of calls", "in a list", ".delay(...)")),
    "jobs": (lambda: any_enqueue([add]), EnqueueFailed, (add.name, "expected calls made by .bind(...)")),
    "nothing to iterate": (lambda: any_enqueue(5), TypeError, ("enqueue() got 5", "job.bind(...)")),
}


@pytest.mark.parametrize("case", TABLE)
async def test_bad_input(bench: Bench, case: str) -> None:
    do, error, says = TABLE[case]
    with pytest.raises(error) as caught:  # noqa: PT012  # some of it is refused before it is awaited
        answer = do()
        if inspect.isawaitable(answer):
            await answer
    message = str(caught.value)
    assert [fragment for fragment in says if fragment not in message] == [], message
    assert "\n" not in message, "a message is one line"


@pytest.mark.parametrize("ask", ["status", "cancel", "info"])
async def test_a_question_to_a_store_that_is_away_is_given_up(bench: Bench, ask: str) -> None:
    handle, away = await add.delay(1), Watched(bench.broker)
    away.is_away = True
    with bench.app.using(away.as_broker):
        configure(enqueue_timeout=0.05)
        with pytest.raises(BrokerUnavailable, match=r"not answered for 0.05 s: the store is away; .*Check that the broker is running"):
            await getattr(handle, ask)()


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
    """It does not affect clients that send at the same time either."""
    answers: tuple[Any, ...] = await asyncio.gather(add.delay(1), add.delay("one"), add.delay(2), return_exceptions=True)
    assert isinstance(answers[1], EncodeError)
    assert [id_text(lease.envelope.id) for lease in await bench.claim()] == [answers[0].id, answers[2].id]
