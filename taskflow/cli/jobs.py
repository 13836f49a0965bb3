"""`taskflow jobs`: lists the jobs of a store. `job_detail` shows single ones."""

from __future__ import annotations

import argparse
import sys

from taskflow.app.app import App
from taskflow.cli.exit_codes import Exit
from taskflow.cli.job_filter import filter_of, ids_or_filters, is_known_queue, note_unknown_job
from taskflow.cli.job_json import record_json
from taskflow.cli.job_table import job_table
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.model.errors import ConfigurationError


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _jobs)


async def _jobs(app: App, arguments: argparse.Namespace) -> int:
    ids_or_filters(arguments)
    if arguments.ids:
        from taskflow.cli.job_detail import show

        return await show(app, arguments)
    view = filter_of(arguments)
    broker = await existing_broker(app)
    is_known = await is_known_queue(broker.console, view.queue)
    try:
        page = await broker.console.page(view, cursor=arguments.cursor, limit=arguments.limit)
    except ValueError as error:
        raise ConfigurationError(f"--cursor: {error}") from error
    if is_known and not page.records and arguments.cursor is None:
        await note_unknown_job(broker.console, view.job)
    if arguments.json:
        jobs = [record_json(record) for record in page.records]
        print_json({"jobs": jobs, "cursor": page.cursor, "examined": page.examined})
        return Exit.OK if is_known else Exit.NOT_FOUND
    if page.records:
        for line in job_table(page.records):
            print(line)
    elif is_known and page.cursor is None:
        print("no jobs match" if arguments.cursor is None else "no more jobs match", file=sys.stderr)
    if page.cursor is not None:
        more = f"looked at {page.examined:,} jobs; continue with" if page.stopped_early else "there may be more:"
        print(f"{more} --cursor {page.cursor}", file=sys.stderr)
    return Exit.OK if is_known else Exit.NOT_FOUND
