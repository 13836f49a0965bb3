"""Why a process has ended, in words, and by the kernel's counters."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from taskflow.worker.children.syscalls import KILL_COUNT_TTL, ExitStatus, OutOfMemory


@pytest.mark.parametrize(
    ("status", "is_out_of_memory", "code", "cause"),
    [
        (0, False, 0, "exit code 0"),
        (7, False, 7, "exit code 7"),
        (-11, False, 139, "SIGSEGV"),
        (-9, False, 137, "SIGKILL"),
        (-9, True, 137, "out of memory (SIGKILL)"),
        (-40, False, 168, "signal 40"),
    ],
)
def test_an_ending_in_words_and_as_a_shell_has_it(status: int, is_out_of_memory: bool, code: int, cause: str) -> None:
    exit_status = ExitStatus(status, is_out_of_memory)
    assert (exit_status.code, exit_status.cause) == (code, cause)


class Cgroups:
    """A folder with files like the kernel's."""

    def __init__(self, folder: Path, membership: str) -> None:
        self.root = folder / "cgroup"
        self.write("../proc/self/cgroup", membership)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def watched(self) -> OutOfMemory:
        return OutOfMemory(self.root, self.root.parent / "proc")


EVENTS = "low 0\nhigh 0\nmax 12\noom 1\noom_kill {}\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("membership", "path", "text"),
    [
        ("0::/app.slice/web\n", "app.slice/web/memory.events", EVENTS),
        ("0::/app.slice/web\n", "memory.events", EVENTS),  # a container that sees its own folder as the root
        ("0::/../web\n3:cpu:/\n", "unified/memory.events", EVENTS),
        ("4:memory:/docker/1\n1:cpu:/\n", "memory/docker/1/memory.oom_control", CONTROL),
        ("4:cpu,memory:/docker/1\n0::/\n", "memory/memory.oom_control", CONTROL),
    ],
)
def test_a_kill_that_the_kernel_has_counted_was_for_want_of_memory(tmp_path: Path, membership: str, path: str, text: str) -> None:
    """Each increment explains only one: another program sent the second SIGKILL."""
    cgroups = Cgroups(tmp_path, membership)
    cgroups.write(path, text.format(3))
    out_of_memory = cgroups.watched()
    assert not out_of_memory.exit_status(-signal.SIGKILL).is_out_of_memory
    cgroups.write(path, text.format(4))
    assert not out_of_memory.exit_status(-signal.SIGTERM).is_out_of_memory
    assert not out_of_memory.exit_status(0).is_out_of_memory
    assert out_of_memory.exit_status(-signal.SIGKILL).is_out_of_memory
    assert not out_of_memory.exit_status(-signal.SIGKILL).is_out_of_memory


def test_an_old_out_of_memory_kill_explains_no_new_death(tmp_path: Path) -> None:
    """A process of a job may have been killed then, for example. A kill counted since the last check may still be ours."""
    cgroups = Cgroups(tmp_path, "0::/\n")
    cgroups.write("memory.events", EVENTS.format(0))
    out_of_memory = cgroups.watched()
    cgroups.write("memory.events", EVENTS.format(1))
    out_of_memory.check(0.0)
    out_of_memory.check(0.9 * KILL_COUNT_TTL)
    assert out_of_memory.exit_status(-signal.SIGKILL).is_out_of_memory
    cgroups.write("memory.events", EVENTS.format(2))
    out_of_memory.check(KILL_COUNT_TTL)
    out_of_memory.check(2 * KILL_COUNT_TTL)
    assert not out_of_memory.exit_status(-signal.SIGKILL).is_out_of_memory


def test_a_system_that_counts_nothing_is_believed_nothing(tmp_path: Path) -> None:
    assert OutOfMemory(tmp_path / "no", tmp_path / "none").exit_status(-signal.SIGKILL) == ExitStatus(-signal.SIGKILL)
