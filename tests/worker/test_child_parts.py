"""The parts of child processes, tested separately: the messages, the output, and what the system reports."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from taskflow import Backoff
from taskflow.model.clock import start_thread
from taskflow.model.envelope import ClaimId, Envelope, Lease, OnConflict
from taskflow.model.verdict import Cancelled, Completed, Discarded, Failed, HandedBack, Parked, Retried, RunError, Snoozed, Succeeded
from taskflow.worker.children.messages import (
    CallRefused,
    ChildFailed,
    Completing,
    Finished,
    Handshake,
    Import,
    Message,
    ProtocolError,
    Ready,
    Reported,
    Run,
    Stop,
    Unpacker,
    pack,
)
from taskflow.worker.children.process import MAX_LINE_LENGTH, Child, ChildOptions, ChildSpec, Output
from taskflow.worker.events import ChildPrinted
from tests.worker.child_scene import HANDSHAKE

LEASE = Lease(
    envelope=Envelope(
        id=bytes(range(16)),
        job="shop.sell",
        payload=b"\x00\xff",
        queue="mail",
        priority=-3,
        at=1,
        expires=2.5,
        key=b"k" * 16,
        on_conflict=OnConflict.REPLACE,
        max_attempts=4,
        timeout=60.0,
        retry=Backoff(base=2.0, jitter=False),
        headers={"sent-by": "wéb"},
        tags=("import:42", "b"),
        joins=(b"j" * 16,),
    ),
    epoch=3,
    claim=ClaimId(b"s" * 16, 7, 1),
    created_at=1_700_000_000_000_000,
    failures=1,
    crashes=2,
    parked_for=0.5,
    expires_in=60.5,
)
ERROR = RunError("ValueError", "half a pair: \ud800", "Traceback ...", 2)

MESSAGES: list[Message] = [
    Handshake(
        modules=("app.tasks",),
        arguments=("taskflow", "worker"),
        settings={"broker": "sqlite:///a", "enqueue_timeout": 5.0, "max_payload": 1 << 20},
        is_reachable=True,
        has_lifespan=False,
        hooks=("child_initializer",),
        log_level=20,
    ),
    Import("app.tasks"),
    Import("__main__", "/srv/main.py"),
    Run(LEASE, "shop"),
    Stop("timed out"),
    Ready(1 << 30),
    Reported(0.5, "half way"),
    Completing(),
    CallRefused("no such job", "Traceback ..."),
    *(
        Finished(verdict, 1 << 20, True)
        for verdict in (
            Succeeded(b"\x00"),
            Failed(ERROR),
            Retried(ERROR, 1.5),
            Discarded("no use"),
            Cancelled("not any more"),
            Snoozed(60.0),
            Parked("a newer worker", 5.0),
            HandedBack(counts=False),
            Completed(Retried(ERROR, 1.5)),
        )
    ),
]


MAX_SIZE = 1 << 16


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert list(Unpacker(MAX_SIZE).feed(pack(message))) == [message]


def test_messages_arrive_in_whatever_portions() -> None:
    unpacker, sent = Unpacker(MAX_SIZE), b"".join(map(pack, MESSAGES))
    for size in (1, 7, 1000):
        portions = [sent[start : start + size] for start in range(0, len(sent), size)]
        assert [message for portion in portions for message in unpacker.feed(portion)] == MESSAGES


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff" * 64,
        (MAX_SIZE + 1).to_bytes(4, "big"),
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x01\x00",
        b"\x00\x00\x00\x00",
        pack(Ready(1)).replace(b"Ready", b"Reads"),
        pack(Finished(Snoozed(1.0), 1, True)).replace(b"Snoozed", b"Snoozer"),
        pack(Reported(0.5, "a")).replace(b"note", b"nota"),
    ],
)
def test_noise_is_told_apart(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Unpacker(MAX_SIZE).feed(noise))


# --- output -------------------------------------------------------------------------------------------------------------


class Pipes:
    """A child that writes, and the lines that are reported from it."""

    def __init__(self) -> None:
        self.told: list[ChildPrinted] = []
        self._stdout, self._stderr = os.pipe(), os.pipe()
        self.threads: list[threading.Thread] = []
        self.output = Output(7, self._stdout[0], self._stderr[0], self.told.append, self._start)

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        self.threads.append(start_thread(target, name))
        return self.threads[-1]

    def out(self, text: bytes) -> None:
        os.write(self._stdout[1], text)

    def err(self, text: bytes) -> None:
        os.write(self._stderr[1], text)

    def close(self) -> None:
        os.close(self._stdout[1])
        os.close(self._stderr[1])
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(printed.stream, printed.line) for printed in self.told]


@pytest.fixture
def pipes() -> Pipes:
    return Pipes()


def test_lines_are_attributed_to_the_run_and_an_unfinished_one_at_its_end(pipes: Pipes) -> None:
    pipes.output.begin(LEASE)
    pipes.out(b"one\r\ntwo\nthr")
    pipes.err(b"\xe2\x82")
    pipes.err(b"\xac\n")
    pipes.output.end()
    assert sorted(pipes.lines) == [("stderr", "€"), ("stdout", "one"), ("stdout", "thr"), ("stdout", "two")]
    assert all(printed.lease == LEASE for printed in pipes.told)
    pipes.out(b"between two runs")
    pipes.close()
    assert (pipes.told[-1].lease, pipes.told[-1].line, pipes.told[-1].pid) == (None, "between two runs", 7)


def test_a_long_line_is_reported_in_pieces(pipes: Pipes) -> None:
    pipes.output.begin(LEASE)
    pipes.out(b"x" * (2 * MAX_LINE_LENGTH + 5))
    pipes.output.end()
    assert [len(line) for _, line in pipes.lines] == [MAX_LINE_LENGTH, MAX_LINE_LENGTH, 5]
    pipes.close()


def test_the_last_lines_of_stderr_are_kept_for_the_error(pipes: Pipes) -> None:
    pipes.output.begin(LEASE)
    pipes.out(b"not this\n")
    pipes.err(b"".join(b"%d\n" % number for number in range(100)))
    pipes.output.end()
    assert pipes.output.last_lines.split("\n") == [str(number) for number in range(60, 100)]
    pipes.output.begin(LEASE)
    assert pipes.output.last_lines == ""
    pipes.close()


# --- a start that fails ---------------------------------------------------------------------------------------------------


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    """Return the processes that this one has started, including zombies; some are servers of other tests."""
    return {f"process {pid}" for thread in Path("/proc/self/task").glob("*/children") for pid in thread.read_text().split()}


async def left_behind(before: set[str]) -> set[str]:
    """Return the descriptors and children that are new since `before`, once threads have had time to close theirs."""
    for _ in range(100):
        if descriptors() <= before:
            break
        await asyncio.sleep(0.02)
    return (descriptors() | children()) - before


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
async def test_a_child_that_finds_no_descriptors_leaves_none_and_no_process() -> None:
    """The descriptors may run out at any step of its start."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open(os.devnull, os.O_RDONLY)]  # below the limit, only the intended numbers are free
    while fillers[-1] + 1 < max(map(int, descriptors())):  # the last of them belongs to the listing
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    before, failures = descriptors() | children(), list[str]()
    for room in range(16):
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + room, limits[1]))
        try:
            child = await Child.start(ChildSpec(HANDSHAKE, ChildOptions(), lambda _: None, start_thread))
        except ChildFailed as failure:
            failures.append(str(failure))
        else:
            child.kill()
            await child.ended
            del child
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await left_behind(before) == set(), f"with room for {room}"
    for filler in fillers:
        os.close(filler)
    assert any("Too many open files" in failure for failure in failures)


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
@pytest.mark.parametrize("thread", ["taskflow-output", "taskflow-child"])
async def test_a_child_that_finds_no_thread_leaves_no_descriptor_and_no_process(monkeypatch: pytest.MonkeyPatch, thread: str) -> None:
    def refuse(target: Callable[[], None], name: str) -> threading.Thread:
        if name == thread:
            raise RuntimeError("can't start new thread")
        return start_thread(target, name)

    monkeypatch.delattr(os, "pidfd_open", raising=False)
    before = descriptors() | children()
    with pytest.raises(ChildFailed, match="a child process cannot be started: can't start new thread"):
        await Child.start(ChildSpec(HANDSHAKE, ChildOptions(), lambda _: None, refuse))
    assert await left_behind(before) == set()
