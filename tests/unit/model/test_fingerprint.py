"""Failures with one cause have one fingerprint, and other failures have others."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from taskflow.model.fingerprint import (
    POISON,
    UNKNOWN,
    cause_of,
    deploy_in,
    fingerprint,
    fingerprint_in,
    frame,
    pack_cause,
    poison_fingerprint,
    shape,
)
from taskflow.model.verdict import Completed, Discarded, Failed, Retried, RunError, Succeeded

TRACEBACK = """Traceback (most recent call last):
  File "/srv/releases/{release}/app/tasks.py", line {line}, in {function}
    charge(order)
  File "/srv/venv/lib/python3.13/site-packages/httpx/_client.py", line 914, in send
    raise error
  File "<frozen runpy>", line 88, in _run_code
ConnectError: no route
"""


def of_failure(message: str = "no route", kind: str = "httpx.ConnectError", **place: object) -> bytes:
    return fingerprint(message, kind, TRACEBACK.format(**{"release": 7, "line": 12, "function": "charge", **place}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 17 is closed", "order 1,234.5 is closed"),
        ("no user 'ada@example.com'", "no user 'bob'"),
        ('no user "ada"', 'no user "bob@x"'),
        ("no row 01a22050-53dc-7000-bbe5-391a3161c10c", "no row 01a22050-5523-7000-ab24-a1bcd774ea92"),
        ("<object at 0x7f31>", "<object at 0x55aa01>"),
        ("commit 3fa9c21 is gone", "commit deadbeef99 is gone"),
        ("a\nb", "a  b"),
    ],
)
def test_variable_parts_do_not_change_a_fingerprint(one: str, other: str) -> None:
    assert shape(one) == shape(other)
    assert of_failure(one) == of_failure(other)


@pytest.mark.parametrize(
    "other",
    [{"function": "refund"}, {"kind": "httpx.ReadError"}, {"message": "no route to host"}],
)
def test_another_place_type_or_text_is_another_cause(other: dict[str, str]) -> None:
    assert of_failure(**other) != of_failure()


def test_poison_is_grouped_by_what_killed_the_workers() -> None:
    def discarded(times: int, cause_of_death: str) -> bytes | None:
        return cause_of(Discarded(f"poison: its worker was lost {times} times in a row while it had this job{cause_of_death}"), "")

    assert poison_fingerprint("signal SIGKILL") == discarded(4, ", the last time: signal SIGKILL")
    assert poison_fingerprint("signal SIGKILL") != poison_fingerprint("signal SIGSEGV")
    assert poison_fingerprint() == discarded(5, "") == POISON


def test_the_cause_of_a_verdict_has_its_fingerprint_and_the_deploy() -> None:
    error = RunError("app.NoUser", "no user 7", "")
    assert (
        cause_of(Failed(error), "d1")
        == cause_of(Completed(Failed(error)), "d1")
        == pack_cause(fingerprint("no user 8", "app.NoUser"), "d1")
    )
    assert cause_of(Discarded("no user 7"), "") == fingerprint("no user 8") != fingerprint("no user 8", "app.NoUser")
    assert cause_of(Succeeded(b""), "") is cause_of(Retried(error), "") is cause_of(Completed(Retried(error)), "") is None


@pytest.mark.parametrize("stored", [None, b"", b"1234567", "12345678", 8, [1]])
def test_any_stored_value_has_a_fingerprint(stored: object) -> None:
    assert fingerprint_in(stored) == UNKNOWN
    assert deploy_in(stored) == ""


def test_the_frame_is_the_innermost_of_the_application() -> None:
    assert frame(TRACEBACK.format(release=7, line=12, function="charge")) == "app/tasks.py:charge"
    assert frame('  File "/x/site-packages/a/b.py", line 1, in f\n') == "a/b.py:f"
    assert frame("no traceback") == ""
    group = ExceptionGroup("unhandled errors in a TaskGroup", [_raised(_one), _raised(_other)])
    assert frame("".join(traceback.format_exception(group))) == "model/test_fingerprint.py:_other"
    assert frame('  File "C:\\app\\tasks.py", line 1, in f\n') == "app/tasks.py:f"


def _one() -> None:
    raise OSError


def _other() -> None:
    raise ValueError


def _raised(function: Callable[[], None]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError
