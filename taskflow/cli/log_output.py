"""Writes the worker's log to stderr, as text or as JSON lines. Lines that a job logs include the job's id."""

from __future__ import annotations

import copy
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.model.printable import MAX_CHARACTERS, indented, json_text, one_line

FIELDS: Final = ("worker", "job", "job_id", "attempt", "queue", "trace_id", "span_id")
MAX_UNREAD: Final = 10_000  # maximum lines that wait for a slow reader; further lines are dropped
MAX_STACK: Final = 65_536  # maximum characters of a traceback or a stack; the middle of a longer one is left out
CLOSE_TIMEOUT: Final = 0.5  # seconds for writing the last lines when the process ends


@contextmanager
def logging_to_stderr(
    level: str, form: str, *filters: Callable[[logging.LogRecord], bool], handler: logging.Handler | None = None, has_pid: bool = False
) -> Iterator[None]:
    """Log to stderr inside the `with` block, through `handler` if given. With JSON lines, Python's warnings are logged too."""
    is_json, root = form == "json", logging.getLogger()
    handler, before = handler or logging.StreamHandler(sys.stderr), root.level
    handler.setFormatter(JsonLines(has_pid=has_pid) if is_json else TextLines(has_pid=has_pid))
    for each in filters:
        handler.addFilter(each)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(is_json)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()


class BackgroundHandler(logging.Handler):
    """Writes to stderr from a separate thread, so that a log call does not wait for a slow reader of stderr."""

    def __init__(self) -> None:
        self._lines = queue.Queue[str | None](MAX_UNREAD)
        self._writing = threading.Thread(target=self._write, name="taskflow-log", daemon=True)
        super().__init__()  # from now on, logging closes this handler when Python exits
        self._writing.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record) + "\n")

    def close(self) -> None:
        self._put(None)
        if self._writing.is_alive():  # a Ctrl-C may have come before the thread started
            self._writing.join(CLOSE_TIMEOUT)
        super().close()

    def _put(self, line: str | None) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # the reader of stderr is gone, or there is no stderr
                sys.stderr.write(line)
                sys.stderr.flush()


class TextLines(logging.Formatter):
    def __init__(self, *, has_pid: bool = False) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {'[%(process)d] ' if has_pid else ''}%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line, whatever the message contains. Any traceback and stack follow it, indented."""
        line = copy.copy(record)
        line.msg, line.args = one_line(_message(record)), None
        line.exc_info = line.exc_text = line.stack_info = None
        return "\n".join((super().format(line), *(indented(text, MAX_STACK) for text in _details(self, record).values())))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        line = super().formatMessage(record)
        return f"{line}  [{one_line(record.job)} {record.job_id}]" if getattr(record, "is_inside", False) else line  # type: ignore[attr-defined]


class JsonLines(logging.Formatter):
    def __init__(self, *, has_pid: bool = False) -> None:
        super().__init__()
        self._has_pid = has_pid

    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(_message(record), MAX_CHARACTERS),
        }
        if self._has_pid:
            shown["pid"] = record.process
        shown |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        shown |= {name: _bounded(text, MAX_STACK) for name, text in _details(self, record).items()}
        return json_text(shown)


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    """Return a record's traceback and stack, if it has them."""
    error = record.exc_text
    if record.exc_info:
        try:
            error = formatter.formatException(record.exc_info)
        except Exception:  # formatting runs the error's own code, which may raise
            from taskflow.worker.run_errors import failure_of  # imported here, because a supervisor rarely needs it

            error = failure_of(record.exc_info[1], attempt=1).traceback if record.exc_info[1] is not None else ""
    return {name: text for name, text in (("error", error), ("stack", record.stack_info)) if text}


def _bounded(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}\n[... of {len(text):,} characters ...]\n{text[-(most // 2) :]}"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a user's line is logged even if its arguments do not match it
        with suppress(Exception):
            return f"{record.msg!r}, and its arguments do not fit: {error}"
        return f"a message that cannot be shown, of {record.name}"
