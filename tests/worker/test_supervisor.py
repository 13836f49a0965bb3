"""The supervisor's decisions, tested without processes and with a clock that the test moves."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence

import pytest

from taskflow.worker.children.syscalls import SAME_SIGNAL, ExitStatus
from taskflow.worker.supervisor import (
    ALONE_TIMEOUT,
    EXIT_TIMEOUT,
    FORCE_TIMEOUT,
    KILL_TIMEOUT,
    MIN_HEALTHY_TIME,
    PAUSES,
    Supervisor,
    SupervisorOptions,
)

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
Sent = list[tuple[int, int]]


class Office:
    """A supervisor whose workers are numbers, from 1 on."""

    def __init__(self, options: SupervisorOptions) -> None:
        self.now = 1000.0
        self.slots: list[int] = []
        self.sent: Sent = []
        self.retired: list[int] = []
        self.is_heard = True
        self.alive: set[int] = set()
        self.crashes: list[tuple[bytes, str]] = []
        self.refusal: OSError | None = None
        self.supervisor = Supervisor(options, self, lambda: self.now)

    # --- its processes

    def start(self, slot: int) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.slots.append(slot)
        self.alive.add(len(self.slots))
        return len(self.slots)

    def signal(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))

    def retire(self, pid: int) -> bool:
        if self.is_heard:
            self.retired.append(pid)
        return self.is_heard

    def record_death(self, session: bytes, cause: str) -> None:
        self.crashes.append((session, cause))

    # --- what happens

    def act(self, seconds: float = 0.0) -> None:
        """Act like the loop: again when told that there may be more to do, until this much time has passed."""
        until = self.now + seconds
        while (at := self.now + self.supervisor.act()) <= until and self.code is None:
            self.now = max(at, self.now + 0.001)
        self.now = max(until, self.now)

    def works(self, *pids: int) -> None:
        for pid in pids:
            self.supervisor.record_report(pid, "loaded")
            self.supervisor.record_report(pid, f"session {session_of(pid).hex()}")
            self.act()

    def ends(self, *pids: int, status: int = 0, is_out_of_memory: bool = False, is_told: bool = True) -> None:
        for pid in pids:
            self.alive.discard(pid)
            if is_told and not status and self.supervisor._workers[pid].exit_code is None:
                self.supervisor.record_report(pid, "ended 0")
            self.supervisor.ended(pid, ExitStatus(status, is_out_of_memory=is_out_of_memory))
            self.act()

    def does(self, something: Callable[[], object]) -> None:
        something()
        self.act()

    def stops(self, *numbers: int) -> None:
        for number in numbers:
            self.does(lambda number=number: self.supervisor.stop(number))  # type: ignore[misc]
            self.act(1.0)

    @property
    def code(self) -> int | None:
        return self.supervisor.code

    @property
    def started(self) -> int:
        return len(self.slots)

    def sent_to(self, pid: int) -> Sequence[int]:
        return [number for to, number in self.sent if to == pid]


def session_of(pid: int) -> bytes:
    return pid.to_bytes(16)


def an_office(processes: int = 2, *, working: bool = True, **options: object) -> Office:
    office = Office(SupervisorOptions(processes=processes, **options))  # type: ignore[arg-type]
    office.act()
    if working:
        office.works(1)
        office.works(*range(2, processes + 1))
    return office


# --- the first start -----------------------------------------------------------------------------------------------------


def test_the_supervisor_ends_once_all_started_workers_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    office = an_office(3, working=False)
    office.supervisor.record_report(1, "loaded")
    office.act(ALONE_TIMEOUT)
    office.ends(1, 3, status=3)
    assert (office.code, office.started) == (None, 3)
    office.ends(2, status=1)
    assert office.code == 3


# --- crashes -------------------------------------------------------------------------------------------------------------


def test_the_cause_is_handed_on_with_each_session_of_the_dead() -> None:
    office = an_office(2)
    office.supervisor.record_report(2, f"session {bytes(16).hex()}")
    office.ends(2, status=-signal.SIGSEGV)
    assert office.crashes == [(session_of(2), "SIGSEGV"), (bytes(16), "SIGSEGV")]


def test_pauses_grow_while_a_worker_dies_again_and_again() -> None:
    office = an_office(1)
    pauses = []
    for pid in range(1, 10):
        office.act(MIN_HEALTHY_TIME - 1 if pid > 1 else 0)
        office.ends(pid, status=7)
        died_at = office.now
        while office.started == pid:
            office.act(0.25)
        pauses.append(office.now - died_at)
        office.works(pid + 1)
    assert pauses == [0.0, *(pytest.approx(min(2.0**n, PAUSES.longest), abs=0.3) for n in range(8))]


def test_a_worker_that_ends_without_a_word_has_crashed_whatever_its_code() -> None:
    """A job has called os._exit(0): the worker's other jobs must run again."""
    office = an_office(2)
    office.ends(1, is_told=False)
    assert office.started == 3
    assert office.crashes == [(session_of(1), "exit code 0")]


def test_a_worker_that_a_stranger_winds_down_has_a_successor_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    office = an_office(2)
    office.does(lambda: office.supervisor.record_report(1, "leaving"))
    assert (office.started, office.sent) == (3, [])
    office.supervisor.record_report(1, "ended 0")
    office.ends(1)
    assert "worker 1 has wound down" in caplog.text
    assert "has ended" not in caplog.text


def test_a_system_that_has_no_process_to_give_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    office = an_office(2)
    office.refusal = OSError("Resource temporarily unavailable")
    office.ends(2, status=-KILL)
    office.act(5.0)
    office.refusal = None
    office.act(PAUSES.longest)
    assert office.started == 3
    assert "cannot start a worker" in caplog.text


def test_nonsense_that_a_job_wrote_to_the_socket_is_ignored() -> None:
    office = an_office(2)
    for nonsense in ("", "session", "session zz", "hello \x00", "session aa bb", "ended", "ended x", "ended -1"):
        office.supervisor.record_report(1, nonsense)
    office.supervisor.record_report(4711, "loaded")
    office.act()
    assert office.started == 2


# --- signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [TERM, INT])
def test_the_first_is_passed_on_and_nothing_is_started_any_more(number: int) -> None:
    office = an_office(2)
    office.stops(number)
    office.act(50.0)
    assert office.sent == [(1, number), (2, number)]
    office.ends(1)
    office.act(60.0)
    assert (office.started, office.code) == (2, None)
    office.ends(2)
    assert office.code == 0


def test_the_second_is_passed_on_too_and_the_third_kills() -> None:
    office = an_office(1)
    office.stops(TERM, INT)
    assert office.sent == [(1, TERM), (1, INT)]
    office.does(lambda: office.supervisor.stop(TERM))
    assert (1, KILL) in office.sent
    office.ends(1, status=-KILL)
    assert office.code == 128 + TERM


def test_two_signals_at_once_count_as_one() -> None:
    office = an_office(1)
    office.supervisor.stop(TERM)
    office.now += SAME_SIGNAL / 2
    office.supervisor.stop(TERM)
    office.act(1.0)
    assert office.sent == [(1, TERM)]


def test_a_terminal_that_goes_away_is_a_first_signal_however_often_it_says_so() -> None:
    office = an_office(1)
    for _ in range(3):
        office.supervisor.hang_up()
        office.act(1.0)
    assert office.sent == [(1, TERM)]
    office.stops(TERM)
    assert office.sent == [(1, TERM), (1, TERM)], "to be told by a signal is another thing"


@pytest.mark.parametrize(("statuses", "code"), [((0, 0), 0), ((0, 124), 124), ((124, -9), 137), ((1, 0), 1)])
def test_the_worst_of_their_codes_is_ours(statuses: tuple[int, int], code: int) -> None:
    office = an_office(2)
    office.stops(TERM)
    for pid, status in enumerate(statuses, 1):
        office.ends(pid, status=status)
    assert office.code == code


def test_a_signal_before_any_has_worked_ends_with_its_number() -> None:
    office = an_office(2, working=False)
    office.stops(INT)
    assert office.sent == [(1, TERM)], "Python itself would show a traceback at a SIGINT"
    office.ends(1, status=-TERM)
    assert office.code == 128 + INT


def test_a_signal_that_comes_while_one_ends_already_is_not_its_end() -> None:
    """Python has restored its handlers by then, so the signal ends the process."""
    office = an_office(2)
    office.stops(TERM)
    office.supervisor.record_report(1, "ended 0")
    office.stops(TERM)
    assert (office.sent_to(1), office.sent_to(2)) == ([TERM], [TERM, TERM])
    office.ends(1, status=-TERM)
    office.supervisor.record_report(2, "ended 124")
    office.ends(2, status=124)
    assert (office.code, office.crashes) == (124, [])


def test_a_worker_that_has_lost_its_interpreter_is_killed_in_the_end() -> None:
    office = an_office(1, grace=10.0)
    office.stops(TERM)
    office.act(FORCE_TIMEOUT + 8.0)
    assert office.sent_to(1) == [TERM]
    office.act(3.0)
    assert KILL in office.sent_to(1)


# --- rolling restarts ----------------------------------------------------------------------------------------------------


def test_each_is_replaced_when_the_next_works_and_the_one_before_has_gone() -> None:
    office = an_office(2)
    office.does(office.supervisor.roll)
    assert (office.slots, office.sent) == ([0, 1, 0], [])
    office.act(60.0)
    assert (office.slots, office.sent) == ([0, 1, 0], [])
    office.works(3)
    assert (office.slots, office.sent) == ([0, 1, 0], [(1, TERM)])
    office.ends(1)
    assert (office.slots, office.sent) == ([0, 1, 0, 1], [(1, TERM)])
    office.works(4)
    office.ends(2)
    office.act(60.0)
    assert (office.alive, office.sent) == ({3, 4}, [(1, TERM), (2, TERM)])


def test_a_new_worker_that_cannot_start_leaves_the_old_ones(caplog: pytest.LogCaptureFixture) -> None:
    office = an_office(2)
    office.does(office.supervisor.roll)
    office.ends(3, status=2)
    office.act(60.0)
    assert (office.alive, office.sent, office.code) == ({1, 2}, [], None)
    assert "giving up the rolling restart; the other workers continue: the new worker 3 did not start (exit code 2)" in caplog.text
    office.does(office.supervisor.roll)
    assert office.started == 4


def test_an_old_one_that_dies_meanwhile_is_not_replaced_twice() -> None:
    office = an_office(2)
    office.does(office.supervisor.roll)
    office.ends(1, status=-KILL)
    office.act(60.0)
    assert office.slots == [0, 1, 0]
    office.works(3)
    office.works(4)
    office.ends(2)
    office.act(60.0)
    assert office.alive == {3, 4}


def test_a_stop_ends_a_rolling_restart() -> None:
    office = an_office(2)
    office.does(office.supervisor.roll)
    office.works(3)
    office.stops(TERM)
    office.does(office.supervisor.roll)
    assert [office.sent_to(pid) for pid in (1, 2, 3)] == [[TERM], [TERM], [TERM]]
    office.ends(1, 2, 3)
    assert (office.code, office.started) == (0, 3)


# --- recycling -----------------------------------------------------------------------------------------------------------


def test_one_that_retires_has_all_the_time_that_its_runs_take() -> None:
    """It is neither signalled nor ended by force; when it has wound down it must end."""
    office = an_office(1, grace=10.0, max_memory=1000)
    office.does(lambda: office.supervisor.record_report(1, "retiring"))
    office.works(2)
    office.does(lambda: office.supervisor.record_memory(2, 2000))
    office.act(24 * 3600.0)
    assert (office.retired, office.sent) == ([2], [])
    for pid in (1, 2):
        office.does(lambda pid=pid: office.supervisor.record_report(pid, "leaving"))  # type: ignore[misc]
    office.act(FORCE_TIMEOUT + 12.0)
    assert {pid for pid, number in office.sent if number == KILL} == {1, 2}


def test_a_worker_that_is_too_large_is_asked_once_to_leave_and_is_replaced() -> None:
    office = an_office(2, max_memory=1000)
    office.act(MIN_HEALTHY_TIME)
    for size in (1000, 1001, 1002):
        office.does(lambda size=size: office.supervisor.record_memory(2, size))  # type: ignore[misc]
    assert (office.slots, office.retired, office.sent) == ([0, 1, 1], [2], [])


def test_a_limit_that_every_worker_is_beyond_does_not_make_it_spin(caplog: pytest.LogCaptureFixture) -> None:
    office = an_office(1, max_memory=1000)
    for pid in range(1, 6):
        office.does(lambda pid=pid: office.supervisor.record_memory(pid, 2000))  # type: ignore[misc]
        office.ends(pid)
        office.act(PAUSES.longest)
        office.works(pid + 1)
    office.act(0.9 * 2.0**3)
    assert office.started == 6
    assert "the next one starts in 8 s" in caplog.text


# --- reload --------------------------------------------------------------------------------------------------------------


def test_a_change_amid_a_rolling_restart_ends_it() -> None:
    office = an_office(2, is_reloading=True)
    office.does(office.supervisor.roll)
    office.does(office.supervisor.reload)
    office.ends(1, 2, 3, status=-TERM)
    office.works(4, 5)
    office.act(60.0)
    assert office.alive == {4, 5}
    office.does(office.supervisor.roll)
    assert office.started == 6


# --- silence ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_says_nothing_for_the_stall_limit_is_aborted_and_then_killed() -> None:
    """C code never releases its interpreter lock: nothing in its process can end it."""
    office, unlimited = an_office(1, stall_limit=30.0), an_office(1)
    unlimited.act(300.0)
    assert unlimited.sent == []
    for _ in range(60):
        office.act(1.0)
        office.supervisor.record_report(1, "health 1 1 ")
    office.act(29.0)
    assert office.sent == []
    office.act(6.0)  # it checks every five seconds
    assert office.sent == [(1, signal.SIGABRT)]
    office.act(10.0)
    assert (1, signal.SIGKILL) in office.sent


@pytest.mark.parametrize("said", ["ended 0", "drained 0"])
def test_nor_has_it_all_time_to_be_gone(said: str, caplog: pytest.LogCaptureFixture) -> None:
    """C code that runs as Python ends keeps the interpreter for good: its slot would never be free. It keeps its exit code."""
    for options in (SupervisorOptions(processes=1, stall_limit=30.0), SupervisorOptions(processes=1)):
        office = Office(options)
        office.act()
        office.works(1)
        office.supervisor.record_report(1, said)
        office.act(EXIT_TIMEOUT + 6.0)
        assert office.sent == [(1, signal.SIGABRT)]
        office.act(KILL_TIMEOUT + 6.0)
        assert (1, signal.SIGKILL) in office.sent
        office.ends(1, status=-signal.SIGABRT)
        assert office.crashes == []
    assert "worker 1 has finished but did not exit within 120 s: killing it" in caplog.text
    assert "SIGABRT" not in caplog.text
