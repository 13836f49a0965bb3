"""The command `taskflow`. It imports the parser first, and then only the modules of the given command."""

from __future__ import annotations

import _thread
import os
import sys
import time

TYPE_CHECKING = False  # typing's own would load typing, and a Ctrl-C meanwhile would show our frames
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final


# Seconds that Python may take to end once we are done: it waits for threads and processes that jobs have left behind, and for ever.
LEFT_BEHIND: Final = 5.0
# Seconds more in which that is said, and what was printed is written out.
SAID_WITHIN: Final = 0.5


def program() -> int:
    """The process's own main program: `main`, and then the end of the process with that code, whatever keeps Python from it."""
    code = 1
    try:
        code = main()
    except SystemExit as ending:  # argparse's
        code = ending.code if isinstance(ending.code, int) else 1
        raise
    finally:
        _bound_the_end(code)
    return code


def _bound_the_end(code: int) -> None:
    """Two threads, since who reads what is said may be gone, or what is left may hold a stream. Both begin now: later none may."""
    try:
        _thread.start_new_thread(say_what_keeps_it, (LEFT_BEHIND,))
        _thread.start_new_thread(_end_by_force, (code,))
    except RuntimeError:  # the system has no more threads
        return


def say_what_keeps_it(after: float = 0.0) -> None:
    time.sleep(after)
    print("taskflow: what jobs have left behind, threads or processes, does not end: this process ends without it", file=sys.stderr)
    sys.stdout.flush()


def _end_by_force(code: int) -> None:
    time.sleep(LEFT_BEHIND + SAID_WITHIN)
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Errors of ours are one line on stderr, never a traceback."""
    try:
        return _heedfully(argv)
    except KeyboardInterrupt as told:
        return _interrupted(told)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        _forget_output()
        return 0
    except Exception as error:
        return _explain(error)


def _heedfully(argv: Sequence[str] | None) -> int:
    """Run it so that no Ctrl-C is lost."""
    from taskflow.cli.interrupts import interrupts

    interrupts.watch()
    try:
        _make_output_safe()
        code = _run(argv)
        sys.stdout.flush()
        return code
    except Exception:
        interrupts.raise_again()  # C code that loads a module makes an error of its own of what was raised there
        raise
    finally:
        interrupts.forget()


def _make_output_safe() -> None:
    """What it cannot encode is escaped, a job's error for example; where the process has none, what is printed goes nowhere."""
    import os
    from io import TextIOWrapper

    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # the process's own, to its end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python's own stderr has it


def _run(argv: Sequence[str] | None) -> int:
    from contextlib import nullcontext
    from importlib import import_module

    from taskflow.cli.collector import Collector
    from taskflow.cli.parser import a_parser

    arguments = a_parser().parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    module = "process_1" if arguments.module == "worker" and argv is None and _is_process_1(arguments.argv) else arguments.module
    arguments.collector = Collector()
    with arguments.collector if module in ("worker", "supervise") else nullcontext():
        code: int = import_module(f"taskflow.cli.{module}").run(arguments)
    return code


def _is_process_1(argv: list[str]) -> bool:
    """And may be another than the worker: by its command line it is this command and no other program that calls us, and systemd does not
    wait to be told by its service's own process."""
    return os.getpid() == 1 and argv == sys.orig_argv[len(sys.orig_argv) - len(argv) :] and "NOTIFY_SOCKET" not in os.environ


def _interrupted(told: KeyboardInterrupt) -> int:
    """A second Ctrl-C ends what is left of the process without a word."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return 128 + int(getattr(told, "number", signal.SIGINT))


def _forget_output() -> None:
    """Python flushes it once more at its end, which must not fail again."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_or_forget_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()


def _explain(error: Exception) -> int:
    from taskflow.cli.exits import Exit
    from taskflow.model.errors import BrokerError, ConfigurationError, TaskflowError
    from taskflow.model.printable import message

    if not isinstance(error, TaskflowError | OSError):
        raise error
    if not isinstance(error, TaskflowError):  # as a rule it is our output that cannot be written: the store's errors are ours
        _write_or_forget_output()
    print(f"taskflow: {message(str(error) or type(error).__name__)}", file=sys.stderr)
    if isinstance(error, BrokerError):
        return Exit.BROKER
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED
