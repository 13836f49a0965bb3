"""The worker's log on stderr, as text or as JSON lines. A job's own lines carry its ids."""

from __future__ import annotations

import copy
import json
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

FIELDS: Final = ("job", "job_id", "attempt", "queue")


MOST_UNREAD: Final = 10_000
"""Lines that wait for somebody to read them; what comes beyond is lost."""

WRITTEN_WITHIN: Final = 0.5
"""Seconds that the last lines have at the end."""


@contextmanager
def logging_to_stderr(
    level: str, form: str, *filters: Callable[[logging.LogRecord], bool], handler: logging.Handler | None = None
) -> Iterator[None]:
    """What is logged in the block, warnings included, goes there, by that `handler`; the loggers are left as they were found."""
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for each in filters:
        handler.addFilter(each)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    if form == "json":
        logging.captureWarnings(True)
    try:
        yield
    finally:
        if form == "json":
            logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()


class Unhurried(logging.Handler):
    """Writes to stderr from a thread of its own: who logs does not wait for whoever reads that, and may not read at all."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = queue.Queue[str | None](MOST_UNREAD)
        self._writing = threading.Thread(target=self._write, name="taskflow-log", daemon=True)
        self._writing.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record) + "\n")

    def close(self) -> None:
        self._put(None)
        self._writing.join(WRITTEN_WITHIN)
        super().close()

    def _put(self, line: str | None) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more, or there is no stderr
                sys.stderr.write(line)
                sys.stderr.flush()


class TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """A line stays one, and is one whatever its arguments are."""
        safe = copy.copy(record)
        safe.msg, safe.args = "\\n".join(_message(record).splitlines()), None
        return super().format(safe)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        line = super().formatMessage(record)
        return f"{line}  [{record.job} {record.job_id}]" if getattr(record, "is_inside", False) else line  # type: ignore[attr-defined]


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, the job's fields, and the stack and the error where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        shown |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.stack_info:
            shown["stack"] = record.stack_info
        if record.exc_info:
            shown["error"] = self.formatException(record.exc_info)
        return json.dumps(shown, default=str)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a user's line whose arguments do not fit it is a line all the same
        return f"{record.msg!r}, and its arguments do not fit: {error}"
