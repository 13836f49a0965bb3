"""The `taskflow` command. It imports the parser first, and then only the module of the given command."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # built in, so it loads nothing: `signal` would load enum
import _thread
import os
import sys
import time

TYPE_CHECKING = False  # loading typing takes time, during which a Ctrl-C would print taskflow's frames
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final


EXIT_TIMEOUT: Final = 5.0  # seconds. Python itself would wait indefinitely for threads and processes that jobs have left behind
WARNING_TIMEOUT: Final = 0.5  # additional seconds to print a warning and the buffered output


def program() -> int:
    """Run `main` as the main program, then end the process with its exit code, even if something keeps Python from exiting."""
    # A Ctrl-C that `main` does not handle ends the process silently: Python's handler would print a traceback of taskflow's frames.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _open_standard_streams()
    code = 1
    try:
        code = main()
    except SystemExit as ending:  # argparse raises it
        code = ending.code if isinstance(ending.code, int) else 1
        raise
    finally:
        _limit_exit_time(code)
    return code


def _open_standard_streams() -> None:
    """Open descriptors 0 to 2 if they're closed. Otherwise the next file or socket would get their numbers: libraries would print into it,
    and uvloop would abort."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _limit_exit_time(code: int) -> None:
    """Start a thread that warns of a slow exit, and one that then kills the process. There are two because printing may block."""

    def end_by_force() -> None:
        time.sleep(EXIT_TIMEOUT + WARNING_TIMEOUT)
        os._exit(code)

    try:
        _thread.start_new_thread(warn_of_slow_exit, (EXIT_TIMEOUT,))
        _thread.start_new_thread(end_by_force, ())
    except RuntimeError:  # the system cannot start another thread
        return


def warn_of_slow_exit(after: float = 0.0) -> None:
    time.sleep(after)
    print("taskflow: threads or processes left behind by jobs do not end; exiting without waiting for them", file=sys.stderr)
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. A TaskflowError or OSError is printed to stderr as one line, without a traceback."""
    try:
        from taskflow.cli.startup import interrupts

        interrupts.watch()
        try:
            return _run_and_flush(argv)
        except Exception:
            interrupts.raise_again()  # C code that loads a module may have replaced the exception with another error
            raise
        finally:
            interrupts.forget()
    except KeyboardInterrupt as interrupt:
        return 128 + int(getattr(interrupt, "number", _signal.SIGINT))
    except BrokenPipeError:  # the reader of the output is gone, for example `head`
        _forget_output()
        return 0
    except Exception as error:
        return _explain(error)


def _run_and_flush(argv: Sequence[str] | None) -> int:
    from io import TextIOWrapper

    if isinstance(sys.stdout, TextIOWrapper):  # a job's error may have characters that stdout cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")  # like Python's own stderr
    code = _run(argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
    return code


def _run(argv: Sequence[str] | None) -> int:
    from contextlib import nullcontext
    from importlib import import_module

    from taskflow.cli.parser import a_parser
    from taskflow.cli.startup import Collector
    from taskflow.cli.worker_options import is_supervised, parse_with_settings

    parser, given = a_parser(), list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(given)
    is_worker = arguments.command == "worker"
    is_pid1 = is_worker and not is_supervised(arguments) and argv is None and _is_pid1(given)
    if arguments.command in ("worker", "check") and not is_pid1:
        arguments = parse_with_settings(parser, given, arguments.command)
    arguments.argv, arguments.collector = given, Collector()
    name = "startup:run_as_pid1" if is_pid1 else "supervise:run" if is_worker and is_supervised(arguments) else arguments.module
    module, _, function = name.partition(":")
    with arguments.collector if is_worker and not is_pid1 else nullcontext():
        code: int = getattr(import_module(f"taskflow.cli.{module}"), function)(arguments)
    return code


def _is_pid1(argv: list[str]) -> bool:
    """Return True if this command is process 1 itself. False under systemd, which expects notifications only from that process."""
    return os.getpid() == 1 and argv == sys.orig_argv[len(sys.orig_argv) - len(argv) :] and "NOTIFY_SOCKET" not in os.environ


def _forget_output() -> None:
    """Discard further output, so that Python's flush of stdout at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> int:
    from taskflow.cli.exit_codes import Exit
    from taskflow.model.errors import BrokerError, ConfigurationError, TaskflowError
    from taskflow.model.printable import message

    if not isinstance(error, TaskflowError | OSError):
        raise error
    if not isinstance(error, TaskflowError):  # usually the output cannot be written; the store's errors are TaskflowErrors
        try:
            sys.stdout.flush()
        except OSError:
            _forget_output()
    print(f"taskflow: {message(str(error) or type(error).__name__)}", file=sys.stderr)
    if isinstance(error, BrokerError):
        return Exit.BROKER
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED
