"""Plain data and pure rules."""

from __future__ import annotations

import math
import random
import time
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from taskflow.model.audit import Action, action_record_of, pack_action
from taskflow.model.clock import ManualClock, Seams, SystemClock, instant_of, microseconds_of, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, check_envelope, pack_extras, unpack_extras
from taskflow.model.ids import IdFactory, id_text, key_digest, parse_id
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.record import ENDED, Status
from taskflow.model.rules import Backoff
from taskflow.model.session import MAX_DIED_OF, UNKNOWN_DEATH, Beat, Report, Session, SessionRecord
from taskflow.model.transitions import MOVES, Event
from taskflow.model.verdict import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    Completed,
    Parked,
    Retried,
    RunEnding,
    RunError,
    Snoozed,
    Succeeded,
    append_error,
    unpack_errors,
)


def envelope(**fields: object) -> Envelope:
    return Envelope(**{"id": bytes(16), "job": "a", "payload": b"x", **fields})  # type: ignore[arg-type]


# --- clocks ---------------------------------------------------------------------------------------------


def test_a_manual_clock_moves_on_request_and_only_forwards() -> None:
    clock = ManualClock()
    wall, steady = clock.wall(), clock.steady()
    clock.advance(1.5)
    assert (clock.wall() - wall, clock.steady() - steady) == (1_500_000, 1_500_000)
    with pytest.raises(ValueError, match="time only moves forward"):
        clock.advance(-1)


def test_the_system_clock_is_the_machines() -> None:
    clock = SystemClock()
    assert abs(to_seconds(clock.wall()) - time.time()) < 60
    first = clock.steady()
    assert clock.steady() >= first
    assert clock.boot_id() == SystemClock().boot_id() != ""


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1), timezones=st.just(timezone(timedelta(hours=5)))))
def test_instants_come_back_to_the_microsecond(instant: datetime) -> None:
    assert instant_of(microseconds_of(instant)) == instant


# --- ids ------------------------------------------------------------------------------------------------


def test_ids_are_uuids_of_version_7_that_tell_time_and_shard() -> None:
    clock = ManualClock(datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC))
    new_id = IdFactory(Seams(clock=clock, chance=random.Random(1)))
    made = uuid.UUID(bytes=new_id(0xABC))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == clock.wall() // 1000
    assert int.from_bytes(made.bytes[6:8], "big") & 0xFFF == 0xABC


def test_ids_and_pauses_do_not_repeat_when_an_application_seeds_the_global_generator() -> None:
    """200 jobs that were sent once became 18, without any error."""

    def drawn() -> tuple[bytes, float, float]:
        random.seed(42)
        return IdFactory()()[8:], Seams().chance.random(), Backoff().wait(3, Seams().chance)

    first, second = drawn(), drawn()
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_ids_differ_and_come_in_the_order_of_their_milliseconds() -> None:
    clock = ManualClock()
    new_id = IdFactory(Seams(clock=clock))
    assert len({new_id() for _ in range(10_000)}) == 10_000
    first = new_id()
    clock.advance(0.001)
    assert first < new_id()


def test_an_ids_text_comes_back_and_others_are_refused() -> None:
    made = IdFactory()()
    assert parse_id(id_text(made)) == made
    for text in ("", "nonsense", id_text(made)[:-1]):
        with pytest.raises(ValueError, match="is not a job id"):
            parse_id(text)


@pytest.mark.parametrize("key", ["", "x" * 201, "ä" * 101])
def test_a_key_has_1_to_200_bytes(key: str) -> None:
    with pytest.raises(ValueError, match=r"key= has \d+ bytes of UTF-8, expected 1 to 200"):
        key_digest("q", "j", key)


# --- back-off ---------------------------------------------------------------------------------------------


@given(st.integers(0, 3_000), st.floats(0, 1e6), st.floats(0, 1e3), st.floats(0, 1e6), st.integers())
def test_a_wait_lies_within_the_formula(failures: int, base: float, factor: float, longest: float, seed: int) -> None:
    wait = Backoff(base=base, factor=factor, max=longest).wait(failures, random.Random(seed))
    assert 0 <= wait <= longest
    if failures < 50:
        assert wait <= base * factor**failures


# --- envelopes --------------------------------------------------------------------------------------------


def test_extras_come_back() -> None:
    full = envelope(max_attempts=3, timeout=1.5, keep_result=0.0, headers={"a": "b"}, retry=Backoff(base=2, factor=5, max=9, jitter=False))
    extras = unpack_extras(pack_extras(full))
    assert envelope(**extras) == full


def test_equal_extras_that_are_packed_one_after_the_other_share_no_headers() -> None:
    """The second packing is remembered from the first."""
    one, other = (unpack_extras(pack_extras(envelope(headers={"a": "b"}))) for _ in range(2))
    one["headers"]["a"] = "changed by its run"
    assert other["headers"] == unpack_extras(pack_extras(envelope(headers={"a": "b"})))["headers"] == {"a": "b"}
    assert pack_extras(envelope(headers={"a": "c"})) != pack_extras(envelope(headers={"a": "b"}))


def test_extras_of_a_newer_version_are_passed_over() -> None:
    assert unpack_extras(msgpack.packb({"m": 4, "Z": "new"})) == {"max_attempts": 4}


BAD_FIELDS: list[tuple[dict[str, object], str]] = [
    ({"queue": "a b"}, "queue 'a b'"),
    ({"job": "x" * 201}, "1 to 200"),
    ({"job": "a\nb"}, "printable"),
    ({"priority": 101}, "priority=101: expected a whole number from -100 to 100"),
    ({"max_attempts": 0}, "expected at least 1"),
    ({"after": -1.0}, "after=-1.0: expected seconds"),
    ({"expires": math.nan}, "expires=nan"),
    ({"keep_result": -1.0}, "keep_result=-1.0"),
    ({"headers": {"a": "x" * 4096}}, "headers have 4097 bytes in all, expected at most 4096"),
]


@pytest.mark.parametrize(("fields", "said"), BAD_FIELDS)
def test_an_envelope_that_a_user_may_not_send(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_envelope(envelope(**fields))


# --- verdicts and errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [-1.0, math.inf, math.nan])
def test_a_verdict_does_not_wait_for_nonsense(wait: float) -> None:
    error = RunError("E", "m")
    for make in (lambda: Retried(error, wait), lambda: Snoozed(wait), lambda: Parked("w", wait)):
        with pytest.raises(ValueError, match="expected seconds, from 0"):
            make()


def test_an_error_keeps_the_messages_head_and_the_tracebacks_tail() -> None:
    error = RunError("E", "m" * 10_000 + "end", "begin" + "t" * 100_000, 2)
    assert error.message == "m" * MAX_MESSAGE
    assert error.traceback == "t" * MAX_TRACEBACK
    assert error.attempt == 2


def test_a_history_comes_back_in_order() -> None:
    first = RunError("A", "\ud800", "t", 1, ending=RunEnding.TIMED_OUT).of_run("w \ud800", 3, 5)
    second = RunError("B", "n", "", 2).of_run(None, None, 6)
    assert (second.worker, second.started_at, second.at) == ("", 0, 6)
    assert unpack_errors(append_error(append_error(None, first), second)) == (first, second)
    assert unpack_errors(None) == unpack_errors(b"") == ()


@pytest.mark.parametrize("rest", [b"\x95", b"\x95\xa1A", b"\xd9", b"\x93\x01", b"\x07"])
def test_an_error_that_is_cut_off_or_none_is_not_passed_over(rest: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack_errors(append_error(None, RunError("A", "m", "t", 1)) + rest)


@pytest.mark.parametrize("otherwise", [Succeeded(b""), Completed(Snoozed(5.0)), None])
def test_a_completion_that_rolled_back_is_never_a_success(otherwise: Any) -> None:
    with pytest.raises(TypeError, match="otherwise="):
        Completed(otherwise)


# --- the table of moves -------------------------------------------------------------------------------------


def test_only_an_operator_brings_an_ended_job_back() -> None:
    for (before, event), afters in MOVES.items():
        if before in ENDED:
            assert event in (Event.REDO, Event.DROP)
            assert afters <= {Status.READY, Status.SCHEDULED, Status.HELD, None}  # at a limit, and in a flow


def test_every_status_can_be_reached_and_left() -> None:
    reached = {after for afters in MOVES.values() for after in afters}
    left = {before for before, _ in MOVES}
    assert reached == left == {*Status, None}


# --- beats ---------------------------------------------------------------------------------------------------


def test_the_cause_of_a_death_is_truncated_and_never_empty() -> None:
    assert Beat.of_death(bytes(16), "x" * 1_000).died_of == "x" * MAX_DIED_OF
    assert Beat.of_death(bytes(16), "").died_of == UNKNOWN_DEATH
    with pytest.raises(ValueError, match=r"died_of has 201 characters, expected at most 200: Beat\.of_death\(\) shortens it"):
        Beat(session=bytes(16), died_of="x" * 201)


A_CLAIM = ClaimId(bytes(16), 1, 0)


@pytest.mark.parametrize("more", [{"leaving": True}, {"claims": (A_CLAIM,)}, {"seen": 1}, {"reports": (Report(A_CLAIM, 0.0),)}], ids=repr)
def test_a_report_of_a_death_carries_nothing_else(more: dict[str, Any]) -> None:
    """A leaving session hands its leases back, and a living one's beat takes back ghosts: neither applies to a dead session's leases."""
    with pytest.raises(ValueError, match="died_of='exit code 77': a beat with died_of= must carry nothing else"):
        Beat(session=bytes(16), died_of="exit code 77", **more)


# --- pauses between tries of a call -----------------------------------------------------------------------------------


def test_pauses_double_from_the_first_to_the_longest() -> None:
    assert [Pauses(0.1, 1.0).after(failures) for failures in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_pauses_stay_at_the_longest_for_any_number_of_failures() -> None:
    """A float overflows after 1,024 doublings, which took an outage of 85 minutes."""
    pauses = Pauses(0.1, 5.0)
    assert {pauses.after(failures) for failures in (7, 1_023, 1_024, 1_025, 2_000, 10**30)} == {5.0}


def test_a_success_begins_again_with_the_first_pause() -> None:
    retries = Retries(Pauses(1.0, 8.0))
    assert not retries.succeeded()
    assert [retries.failed() for _ in range(3)] == [1.0, 2.0, 4.0]
    assert retries.succeeded()
    assert (retries.failures, retries.failed()) == (0, 1.0)


def test_pauses_are_spread_over_half_to_one_and_a_half_times_their_length() -> None:
    draws = iter([0.0, 0.5, math.nextafter(1.0, 0.0)])
    retries = Retries(Pauses(4.0, 4.0), lambda: next(draws))
    assert [round(retries.failed(), 6) for _ in range(3)] == [2.0, 4.0, 6.0]


# --- the audit log ----------------------------------------------------------------------------------------------------


SOUND = Action(id=bytes(16), by="ada", kind="cancel", names=("a",), named=1, which={"tag": "b"}, affected=2, stopped="", reason="\ud800")


def test_a_packed_act_is_read_as_it_was() -> None:
    record = action_record_of(7, 1_000_000, pack_action(SOUND))
    assert (record.number, record.at.timestamp(), record.action.reason, record.action.which) == (7, 1.0, "\ud800", {"tag": "b"})


@pytest.mark.parametrize(
    "body",
    [None, 7, "text", b"", b"\xc1", msgpack.packb([]), msgpack.packb([1] * 8), msgpack.packb(["a"] * 8), pack_action(SOUND)[:-1]],
    ids=str,
)
def test_an_entry_that_cannot_be_read_is_listed_as_such(body: Any) -> None:
    """This includes an entry with a time that the calendar lacks."""
    record = action_record_of("one", 1 << 62, body)
    assert (record.number, record.at.timestamp(), record.action.by, record.action.kind) == (0, 0.0, "?", "?")


@pytest.mark.parametrize(("leases", "surplus", "busy"), [(33, 32, 1), (20, 0, 20), (80, 0, 20), (90, 9, 20), (0, 32, 0)])
def test_leases_that_need_no_slot_are_not_counted_as_busy(leases: int, surplus: int, busy: int) -> None:
    """Such leases wait for a slot, or share the slot of a batch. The surplus is that of a moment ago."""
    session = Session(id=bytes(16), name="worker", concurrency=20, surplus=surplus)
    shown = SessionRecord(session=session, registered_at=instant_of(0), seconds_since_beat=0.0, leases=leases, is_dying=False)
    assert shown.busy == busy
