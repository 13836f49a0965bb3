"""Adds the job's name and id to records that are logged inside a job."""

from __future__ import annotations

import logging

from taskflow.app.context import running


def add_ids(record: logging.LogRecord) -> bool:
    """Add the running job's name, id, attempt and queue to a log record. This is a `logging` filter that lets every record pass."""
    context = running.get()
    if context is not None and not hasattr(record, "job_id"):
        record.job, record.job_id, record.attempt, record.queue = context.job_name, context.job_id, context.attempt, context.queue
        record.is_inside = True
    return True
