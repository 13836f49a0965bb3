"""Assertions about calls that were sent: their arguments, options and number, and the message of a failed assertion."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any
from unittest.mock import ANY

import pytest

from taskflow import Backoff, EnqueueOptions, Snooze, TaskflowJobs, enqueue, job, named, send as send_by_name
from taskflow.app.app import default_app
from taskflow.model.codec import encode_value
from taskflow.model.envelope import Envelope


@dataclass
class Mail:
    to: str
    words: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@job(name="tests.assertions.send")
async def send(mail: Mail, day: date, *, urgent: bool = False) -> None: ...


@job(name="tests.assertions.odd", queue="odd")
async def odd(queue: str, count: int = 1, options: str = "") -> None: ...


@job(name="tests.assertions.many")
async def many(*numbers: int, **named: Any) -> None: ...


@job(name="tests.assertions.nothing")
async def nothing() -> None: ...


@job(name="tests.assertions.renamed", aliases=("tests.assertions.old_name",))
async def renamed(value: Any) -> None: ...


@job(name="tests.assertions.snoozes")
async def snoozes() -> None:
    raise Snooze(after=60)


DAY = date(2026, 1, 1)


async def sent(**options: Any) -> None:
    await send.options(**options).delay(Mail("a", ["x", "y"], {"id": 5}), DAY, urgent=True)


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((ANY, ANY), {"urgent": ANY}),
        ((ANY, DAY), {"urgent": True}),
        ((Mail(ANY, ["x", "y"], {"id": 5}), DAY), {"urgent": True}),
        ((Mail("a", ["x", ANY], {"id": 5}), DAY), {"urgent": True}),
        ((Mail("a", ["x", "y"], {"id": ANY}), DAY), {"urgent": True}),
        ((Mail("a", ANY, ANY),), {"day": DAY, "urgent": True}),
    ],
)
async def test_any_stands_for_any_value_anywhere(taskflow_jobs: TaskflowJobs, args: Any, kwargs: Any) -> None:
    await sent()
    taskflow_jobs.assert_enqueued(send, *args, **kwargs)
    with pytest.raises(AssertionError, match="was enqueued"):
        taskflow_jobs.assert_not_enqueued(send, *args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "error"), [(("a", DAY), {}, "mail: expected"), ((ANY,), {}, "day"), ((ANY, ANY), {"urgnt": True}, "urgnt")]
)
async def test_a_call_that_could_not_be_sent_is_refused(taskflow_jobs: TaskflowJobs, args: Any, kwargs: Any, error: str) -> None:
    """An assertion with a typing error must not hold for ever."""
    for check in (taskflow_jobs.assert_enqueued, taskflow_jobs.assert_not_enqueued):
        with pytest.raises(TypeError, match=error):
            check(send, *args, **kwargs)


# --- options and numbers ---------------------------------------------------------------------------------------------


async def test_keywords_that_the_function_does_not_take_are_options(taskflow_jobs: TaskflowJobs) -> None:
    at = taskflow_jobs.now + timedelta(hours=1)
    headers = {"a": "1", "b": "2"}
    await sent(queue="mail", key="k", after=60, priority=5, expires=120, max_attempts=2, retry=Backoff(base=2), headers=headers)
    await nothing.options(at=at, timeout=5, keep_result=7, tags=("x", "y")).delay()
    for options in (
        {"queue": "mail"},
        {"queue": "mail", "key": "k", "after": timedelta(minutes=1), "priority": 5},
        {"expires": 120, "max_attempts": 2, "retry": Backoff(base=2), "timeout": None},
        {"headers": {"b": "2"}},
        {"key": ANY, "queue": ANY, "at": taskflow_jobs.now + timedelta(minutes=1)},
    ):
        taskflow_jobs.assert_enqueued(send, ANY, DAY, urgent=True, **options)
    taskflow_jobs.assert_enqueued(nothing, at=at, timeout=5, keep_result=7.0, key=None, after=3600, tags=["y"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"queue": "other"}, "queue=: 'mail', expected 'other'"),
        ({"key": "j"}, "key=: 'k', expected 'j'"),
        ({"key": None}, "key=: 'k', expected None"),
        ({"after": 61}, "after=: 60.0, expected 61.0"),
        ({"tags": ["z"]}, "tags=: (), expected ('z',)"),
        ({"headers": {"a": "2"}}, "headers=: {'a': '1'}, expected {'a': '2'}"),
        ({"expires": 60}, "expires=: None, expected 60.0"),
    ],
)
async def test_a_different_option_is_named(taskflow_jobs: TaskflowJobs, options: Any, line: str) -> None:
    await sent(queue="mail", key="k", after=60, headers={"a": "1"})
    with pytest.raises(AssertionError) as failure:
        taskflow_jobs.assert_enqueued(send, ANY, ANY, urgent=ANY, **options)
    assert str(failure.value).endswith(f"urgent=True)\n    {line}")
    taskflow_jobs.assert_not_enqueued(send, ANY, ANY, urgent=ANY, **options)


async def test_parameters_may_have_the_names_of_options(taskflow_jobs: TaskflowJobs) -> None:
    await odd.delay("a", 2, "b")
    await odd.options(queue="b").delay("c")
    taskflow_jobs.assert_enqueued(odd, queue="a", count=2, options="b")
    with pytest.raises(AssertionError, match="options: '', expected 'b'"):
        taskflow_jobs.assert_enqueued(odd, queue="c", options="b")
    await many.options(queue="b").delay(queue="a")
    expected: EnqueueOptions = {"queue": "b"}
    taskflow_jobs.assert_enqueued(many, queue="a", options=expected, count=1)
    taskflow_jobs.assert_not_enqueued(many, queue="b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"quee": "a"}}, "quee"),
        ({"connection": object()}, "connection= cannot be asserted: expected one of queue, "),
        ({"on_conflict": "raise"}, "on_conflict= cannot be asserted"),
        ({"queue": 5}, "queue=5: expected a str"),
        ({"quee": "a"}, "quee"),
    ],
)
async def test_a_wrong_option_is_refused(taskflow_jobs: TaskflowJobs, options: Any, message: str) -> None:
    for check in (taskflow_jobs.assert_enqueued, taskflow_jobs.assert_not_enqueued):
        with pytest.raises(TypeError, match=message):
            check(nothing, **options)


async def test_a_number_of_calls(taskflow_jobs: TaskflowJobs) -> None:
    taskflow_jobs.assert_enqueued(nothing, count=0)
    await enqueue([nothing.bind(), nothing.bind(), renamed.bind(1)])
    taskflow_jobs.assert_enqueued(nothing, count=2)
    for count in (0, 1, 3):
        with pytest.raises(
            AssertionError, match=rf"nothing\(\) was enqueued 2 times, expected {'once' if count == 1 else f'{count} times'}"
        ):
            taskflow_jobs.assert_enqueued(nothing, count=count)
    with pytest.raises(AssertionError, match=r"was enqueued once, expected 2 times$"):
        taskflow_jobs.assert_enqueued(renamed, 1, count=2)


# --- names, and what has run -----------------------------------------------------------------------------------------


async def test_a_job_is_found_by_its_names(taskflow_jobs: TaskflowJobs) -> None:
    await renamed.delay(1)
    app = default_app()
    old = Envelope(id=app.new_id(), job="tests.assertions.old_name", payload=renamed.codec.encode_arguments((2,), {}))
    await app.client().send(old)
    for value in (1, 2):
        taskflow_jobs.assert_enqueued(renamed, value)
        taskflow_jobs.assert_enqueued("tests.assertions.renamed", value)
        taskflow_jobs.assert_enqueued("tests.assertions.old_name", value=value)
    with pytest.raises(AssertionError, match="was enqueued"):
        taskflow_jobs.assert_not_enqueued("tests.assertions.renamed")


async def test_a_job_that_is_not_known_here_is_found_by_its_name(taskflow_jobs: TaskflowJobs) -> None:
    app = default_app()
    await send_by_name("app.charge", order=7, queue="a")
    await app.client().send(Envelope(id=app.new_id(), job="app.charge", queue="money", payload=encode_value({"order": 9, "queue": "a"})))
    taskflow_jobs.assert_enqueued("app.charge", order=7, queue="a")
    taskflow_jobs.assert_enqueued("app.charge", order=ANY, queue=ANY, options={"queue": "money"}, count=1)
    taskflow_jobs.assert_enqueued("app.charge", order=ANY, queue=ANY, count=2)
    with pytest.raises(AssertionError, match=r"app.charge\(order=7, queue='a'\)\n    order: 7, expected 8"):
        taskflow_jobs.assert_enqueued("app.charge", order=8, queue="a")
    with pytest.raises(TypeError, match=r"the job 'app\.charge' is not known here: pass its arguments by name"):
        taskflow_jobs.assert_enqueued("app.charge", 7)
    taskflow_jobs.assert_not_enqueued("app.other")


async def test_jobs_that_ran_inline_count_as_enqueued(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        await nothing.options(queue="q").delay()
        await snoozes.delay()
    taskflow_jobs.assert_enqueued(nothing, queue="q", count=1)
    taskflow_jobs.assert_enqueued(snoozes, count=1)
    with pytest.raises(AssertionError, match="was enqueued"):
        taskflow_jobs.assert_not_enqueued(nothing)
    assert [record.job for record in await taskflow_jobs.enqueued()] == [snoozes.name]


# --- what is shown ---------------------------------------------------------------------------------------------------


async def test_the_nearest_calls_are_shown_first(taskflow_jobs: TaskflowJobs) -> None:
    for name, day, urgent in (("x", date(2026, 5, 5), True), ("a", DAY, True), ("b", DAY, True), ("c", DAY, False), ("d", DAY, True)):
        await send.delay(Mail(name), day, urgent=urgent)
    with pytest.raises(AssertionError) as failure:
        taskflow_jobs.assert_enqueued(send, Mail("c"), DAY, urgent=True)
    mail = "Mail(to={!r}, words=[], meta={{}})"
    assert str(failure.value) == "\n".join(
        [
            f"tests.assertions.send({mail.format('c')}, datetime.date(2026, 1, 1), urgent=True) was not enqueued; "
            "the closest of 5 other calls to this job:",
            *(
                line
                for name, urgent, difference in (
                    ("a", True, f"mail: {mail.format('a')}, expected {mail.format('c')}"),
                    ("b", True, f"mail: {mail.format('b')}, expected {mail.format('c')}"),
                    ("c", False, "urgent: False, expected True"),
                )
                for line in (
                    f"  tests.assertions.send({mail.format(name)}, datetime.date(2026, 1, 1), urgent={urgent})",
                    f"    {difference}",
                )
            ),
        ]
    )


async def test_without_a_call_of_the_job_the_others_are_shown(taskflow_jobs: TaskflowJobs) -> None:
    with pytest.raises(AssertionError, match=r"nothing\(\) was not enqueued; nothing was$"):
        taskflow_jobs.assert_enqueued(nothing)
    await renamed.delay(5)
    with pytest.raises(AssertionError, match=r"nothing\(\) with queue='q' was not enqueued; these were: tests.assertions.renamed\(5\)$"):
        taskflow_jobs.assert_enqueued(nothing, queue="q")


@pytest.mark.parametrize("job_type", [send.function, nothing.bind(), named("tests.assertions.nothing"), None])
def test_assertions_refuse_anything_but_a_job_or_a_name(taskflow_jobs: TaskflowJobs, job_type: Any) -> None:
    for check in (taskflow_jobs.assert_enqueued, taskflow_jobs.assert_not_enqueued):
        with pytest.raises(TypeError, match="expected a job or its name, followed by its arguments"):
            check(job_type)
