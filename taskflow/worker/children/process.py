"""A child process, as seen from the worker."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Self, TypeVar, cast

import msgspec

from taskflow.model.clock import StartThread
from taskflow.model.envelope import Lease
from taskflow.model.verdict import Progress, Verdict
from taskflow.worker.children import messages
from taskflow.worker.children.messages import CannotStart, ChildDied, ChildFailed
from taskflow.worker.children.syscalls import CONNECTION, OutOfMemory, Process, spawn
from taskflow.worker.events import ChildPrinted
from taskflow.worker.lease_table import HeldLease

MEBIBYTE: Final = 1 << 20
# This starts a new interpreter with the same path instead of forking, because the worker has threads, connections and locks.
_BOOT: Final = "import sys; sys.path[:] = sys.argv[2:]; from taskflow.worker.children.child import main; main(int(sys.argv[1]))"
_UNTIL_DEAD: Final = 1.0  # seconds to wait for a child to end after it has closed its connection
_OUTPUT_TIMEOUT: Final = 0.2  # seconds to wait for a child's last output after it has ended
MAX_LINE_LENGTH: Final = 8_192  # the maximum length of a line in characters. Longer lines are reported in pieces.
MAX_OUTPUT: Final = 1 << 20  # the maximum number of characters that are reported for one run. The rest is counted and dropped.
LAST_LINES: Final = 40  # the number of stderr lines that are added to a run's error if its child has died
_AT_ONCE: Final = 1 << 16  # the size of a pipe in bytes


class ChildOptions(msgspec.Struct, frozen=True, kw_only=True):
    # The maximum number of children that run jobs at once; None means the number of cores that this process may use
    at_once: int | None = None
    max_runs: int = 100  # the number of runs after which a child is replaced
    # The number of bytes by which a child's memory may grow after its imports before the child is replaced
    max_growth: int = 256 * MEBIBYTE
    idle_for: float = 300.0  # seconds without work after which a child ends
    start_within: float = 60.0  # seconds allowed for a child to start, and for each later import
    exit_within: float = 5.0  # seconds allowed for a child to exit by itself before it is killed

    @property
    def slots(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.at_once or cores


F = TypeVar("F", bound=ChildFailed)


Emit = Callable[[ChildPrinted], None]


class Output:
    """Reads one child's stdout and stderr in a thread, which ends once the child and all processes it started have closed both."""

    def __init__(self, pid: int, stdout: int, stderr: int, emit: Emit, start_thread: StartThread) -> None:
        self._lock = threading.Lock()
        self._streams = {stdout: _Stream("stdout", stdout, pid, emit), stderr: _Stream("stderr", stderr, pid, emit)}
        self._errors = self._streams[stderr]
        self._open = set(self._streams)
        for descriptor in self._streams:
            os.set_blocking(descriptor, False)
        start_thread(self._empty, "taskflow-output")

    def begin(self, lease: Lease) -> None:
        """Attribute all output read from now on to this run."""
        with self._lock:
            for stream in self._streams.values():
                stream.begin(lease)

    def end(self) -> None:
        """End the run. When this returns, everything that the run printed has been reported."""
        with self._lock:
            for descriptor, stream in self._streams.items():
                if descriptor in self._open:
                    self._read(descriptor)  # only once: a program that the job started may keep printing forever
                stream.end()

    @property
    def last_lines(self) -> str:
        """The last lines that the run wrote to stderr. They stay available until the next run begins."""
        return "\n".join(self._errors.last_lines)

    def _empty(self) -> None:
        poll = select.poll()
        for descriptor in self._streams:
            poll.register(descriptor, select.POLLIN)
        while self._open:
            for descriptor, _ in poll.poll():
                with self._lock:
                    self._read(descriptor)
                    if descriptor not in self._open:
                        poll.unregister(descriptor)
        with self._lock:
            for descriptor, stream in self._streams.items():
                stream.end()
                os.close(descriptor)

    def _read(self, descriptor: int) -> None:
        """Read what is in the pipe. The caller holds the lock."""
        try:
            received = os.read(descriptor, _AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if received:
            self._streams[descriptor].take(received)
        else:
            self._open.discard(descriptor)


class _Stream:
    def __init__(self, name: str, descriptor: int, pid: int, emit: Emit) -> None:
        self.last_lines = deque[str](maxlen=LAST_LINES)
        self._name = name
        self._pid = pid
        self._emit = emit
        self._lease: Lease | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = ""
        self._left = MAX_OUTPUT
        self._dropped = 0

    def begin(self, lease: Lease) -> None:
        self.end()
        self.last_lines.clear()
        self._lease = lease

    def take(self, received: bytes) -> None:
        *lines, self._begun = (self._begun + self._decoder.decode(received)).split("\n")
        for line in lines:
            self._say(line.removesuffix("\r"))
        while len(self._begun) >= MAX_LINE_LENGTH:
            self._say(self._begun[:MAX_LINE_LENGTH])
            self._begun = self._begun[MAX_LINE_LENGTH:]

    def end(self) -> None:
        if self._begun:
            self._say(self._begun)
            self._begun = ""
        if self._dropped:
            self._emit(ChildPrinted(self._lease, self._pid, self._name, f"... and {self._dropped:,} more characters, which are not shown"))
        self._lease, self._left, self._dropped = None, MAX_OUTPUT, 0

    def _say(self, line: str) -> None:
        for start in range(0, max(1, len(line)), MAX_LINE_LENGTH):
            piece = line[start : start + MAX_LINE_LENGTH]
            if len(piece) >= self._left:
                self._left, self._dropped = 0, self._dropped + len(piece) + 1
            else:
                self._left -= len(piece) + 1
                self.last_lines.append(piece)
                self._emit(ChildPrinted(self._lease, self._pid, self._name, piece))


class ChildSpec(msgspec.Struct, frozen=True):
    handshake: messages.Handshake
    options: ChildOptions
    emit: Emit
    start_thread: StartThread


class Child(asyncio.Protocol):
    """A child process, which runs one job at a time. Belongs to the event loop that started it. `ended` holds its exit code once it has
    ended. `is_spent` is True if it must not get another job, and `is_retired` if it was asked to exit. It has its own process group: a
    Ctrl-C does not reach it, and killing it also kills the processes that it has started."""

    def __init__(self, process: Process, output: Output, spec: ChildSpec) -> None:
        self.pid = process.pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_spent = False
        self._process = process
        self._output = output
        self._spec = spec
        self._runs = 0
        self._modules = set[str]()
        self._memory_at_first = 0
        self.is_retired = False
        self._was_asked = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unpacker = messages.Unpacker(spec.handshake.settings["max_payload"] + messages.OVERHEAD)
        self._answer: asyncio.Future[messages.Message] = self._loop.create_future()
        self._run: HeldLease | None = None
        self._out_of_memory = OutOfMemory()

    @classmethod
    async def start(cls, spec: ChildSpec) -> Self:
        """Start a child. Raises ChildFailed if it dies or is not ready in time. If this is cancelled, no process is left behind."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _cannot_start(error) from error
        with ours, theirs:
            process, output = _spawn(theirs.fileno(), spec)
            child = cls(process, output, spec)
            try:
                child._watch()
                await child._loop.create_unix_connection(lambda: child, sock=ours.dup())
                theirs.close()
                child._memory_at_first = await child._get_ready(spec.handshake)
            except BaseException as error:
                child.kill()
                await asyncio.wait([child.ended], timeout=_UNTIL_DEAD)
                if isinstance(error, OSError):
                    raise _cannot_start(error) from error
                raise
        return child

    async def prepare(self, module: str, main: str | None) -> None:
        """Make the child import the module and set itself up. Raises ChildFailed. If this is cancelled, the caller must kill the child."""
        if module not in self._modules:
            self._memory_at_first = await self._get_ready(messages.Import(module, main))
            self._modules.add(module)

    async def run(self, holding: HeldLease, module: str) -> Verdict:
        """Run the job and return its verdict. Raises ChildFailed if there is none. If this is cancelled, the caller must kill the child."""
        self._runs += 1
        self._run = holding
        self._out_of_memory.mark()
        self._output.begin(holding.lease)
        try:
            answer = await self._ask(messages.Run(_lease_for_child(holding), module))
        finally:
            self._run = None
            self._output.end()
        if not isinstance(answer, messages.Finished):
            raise self._refusal(answer)
        has_grown = answer.memory - self._memory_at_first > self._spec.options.max_growth
        self.is_spent |= not answer.is_whole or has_grown or self._runs >= self._spec.options.max_runs
        return answer.verdict

    def ask_to_stop(self, why: str) -> None:
        """Ask the run to stop. Its function may be interrupted anywhere, so the child is not used for another run."""
        self.is_spent = self._was_asked = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(messages.pack(messages.Stop(why)))

    def retire(self) -> None:
        """Make the child exit within `exit_within` seconds. Processes that it started may continue, unless its last run was stopped."""
        self.is_retired = self.is_spent = True
        self._hang_up()
        self._loop.call_later(self._spec.options.exit_within, self.kill)

    def kill(self) -> None:
        """Kill the child and the processes that it has started. The child is gone once `ended` is set."""
        self.is_spent = True
        if not self.ended.done():
            self._kill_group()
            self._process.kill()  # in case it has left its group
        self._hang_up()

    async def _get_ready(self, message: messages.Handshake | messages.Import) -> int:
        """Make the child import modules. Return its memory use afterwards, in bytes. Raises ChildFailed if it fails or takes too long."""
        within = self._spec.options.start_within
        try:
            async with asyncio.timeout(within):
                answer = await self._ask(message)
        except TimeoutError:
            self.kill()
            if isinstance(message, messages.Handshake):
                steps = f"import {', '.join(message.modules) or 'taskflow'}"
            else:
                steps = " and finish ".join([f"import {message.module}", *self._spec.handshake.hooks])
            raise ChildFailed(f"a child process did not {steps} within {within:g} s and was killed: make its start faster") from None
        if not isinstance(answer, messages.Ready):
            raise self._refusal(answer)
        return answer.memory

    def _refusal(self, answer: messages.Message) -> ChildFailed:
        self.is_spent = True
        if isinstance(answer, messages.CallRefused):
            return _with_note(ChildFailed(answer.why), answer.traceback)
        self.kill()
        return ChildDied(f"the child process (pid {self.pid}) sent an unexpected message ({type(answer).__name__}) and was killed")

    async def _ask(self, message: messages.Message) -> messages.Message:
        self._answer = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            self._answer.set_exception(_HungUp("had already closed its connection"))
        else:
            self._transport.write(messages.pack(message))
        try:
            return await self._answer
        except _HungUp as hung_up:
            raise await self._why_dead(hung_up) from None

    async def _why_dead(self, hung_up: _HungUp) -> ChildDied:
        if hung_up.is_its_own:
            await asyncio.wait([self.ended], timeout=_UNTIL_DEAD)
        if hung_up.is_its_own and self.ended.done():
            cause = f"has died: {self._out_of_memory.exit_status(self.ended.result()).cause}"
        else:
            self.kill()
            cause = f"{hung_up}, and was killed"
        self._output.end()
        return _with_note(ChildDied(f"the child process (pid {self.pid}) {cause}"), self._output.last_lines)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not inherit from this class

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._unpacker.feed(data):
                self._hear(message)
        except messages.ProtocolError as garbled:
            self._give_up(_HungUp(f"sent {garbled}", is_its_own=False))
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up(_HungUp("has closed its connection to the worker"))

    def _hear(self, message: messages.Message) -> None:
        match message:
            case messages.Reported(fraction, note):
                if self._run is not None:
                    with contextlib.suppress(ValueError):  # a job may have written the message itself
                        self._run.report(Progress.checked(fraction, note))
            case messages.Completing():
                if self._run is not None:
                    self._run.completed = b""  # provisional: the verdict shows whether it was completed
            case _ if not self._answer.done():
                self._answer.set_result(message)

    def _give_up(self, why: _HungUp) -> None:
        self.is_spent = True
        if not self._answer.done():
            self._answer.set_exception(why)
            self._answer.exception()  # otherwise asyncio reports an exception that was never retrieved

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _watch(self) -> None:
        """Watch for the process's end, because the connection may stay open in a process that it forked. Raises CannotStart."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not on Linux, or not permitted
            try:
                self._spec.start_thread(self._wait_in_a_thread, "taskflow-child")
            except RuntimeError as error:  # without this thread the child's end would go unnoticed, so the child must not start
                self.kill()
                self._record_end(self._process.wait())
                raise _cannot_start(error) from error
            return
        self._loop.add_reader(descriptor, self._record_end_of, descriptor)

    def _record_end_of(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        if not self.is_retired or self._was_asked:  # done before the pid is released, because another process may get it afterwards
            self._kill_group()
        self._record_end(self._process.wait())

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _wait_in_a_thread(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing is waiting
            self._loop.call_soon_threadsafe(self._record_end, code)

    def _record_end(self, code: int) -> None:
        self.is_spent = True
        if not self.ended.done():
            self.ended.set_result(code)
        # The child's last output may still be in the pipe.
        self._loop.call_later(_OUTPUT_TIMEOUT, self._give_up, _HungUp("has ended"))
        self._loop.call_later(_OUTPUT_TIMEOUT, self._hang_up)


class _HungUp(Exception):
    """Raised when no answer will arrive. `is_its_own` is True if the child closed the connection itself, and so may have died."""

    def __init__(self, why: str, *, is_its_own: bool = True) -> None:
        super().__init__(why)
        self.is_its_own = is_its_own


def _spawn(theirs: int, spec: ChildSpec) -> tuple[Process, Output]:
    command = [sys.executable, *_flags(), "-c", _BOOT, str(CONNECTION), *map(os.path.abspath, sys.path)]
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as writing:
        try:
            pipes = list[tuple[int, int]]()
            for _ in ("stdout", "stderr"):
                pipes.append(os.pipe())
                undo.callback(os.close, pipes[-1][0])
                writing.callback(os.close, pipes[-1][1])
            (read_out, write_out), (read_err, write_err) = pipes
            process = spawn(command, connection=theirs, stdout=write_out, stderr=write_err)
            undo.callback(process.wait)
            undo.callback(process.kill)
            output = Output(process.pid, read_out, read_err, spec.emit, spec.start_thread)
        except (OSError, RuntimeError) as error:  # the system is out of descriptors, processes or threads
            raise _cannot_start(error) from error
        undo.pop_all()
    return process, output


def _cannot_start(error: Exception) -> CannotStart:
    return CannotStart(f"a child process cannot be started: {error}")


def _flags() -> list[str]:
    """Return the flags of this interpreter that affect how code behaves: -O, -W and -X."""
    optimized = [f"-{'O' * sys.flags.optimize}"] if sys.flags.optimize else []
    extended = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    return [*optimized, *(f"-W{option}" for option in sys.warnoptions), *extended]


def _with_note(error: F, note: str) -> F:
    if note:
        error.add_note(note)
    return error


def _lease_for_child(holding: HeldLease) -> Lease:
    if not holding.child_headers:
        return holding.lease
    envelope = msgspec.structs.replace(holding.lease.envelope, headers=holding.lease.envelope.headers | holding.child_headers)
    return msgspec.structs.replace(holding.lease, envelope=envelope)
