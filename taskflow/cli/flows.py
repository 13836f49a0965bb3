"""`taskflow flows`: lists the newest flows, or shows flows as trees."""

from __future__ import annotations

import argparse
from typing import Final

from taskflow.app.app import App
from taskflow.app.bulk_actions import CallBrokerOnce
from taskflow.app.flow_tree import TreeLine, flow_json, flow_of, summary_of, tree_of
from taskflow.cli.command import existing_broker, ids_of, on_store
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import BOLD, OF_STATUS, Column, ago, painted, print_json, show, table, warn
from taskflow.model.ids import id_text


@on_store
async def flows(app: App, arguments: argparse.Namespace) -> int:
    call = CallBrokerOnce(broker := await existing_broker(app))
    if not arguments.ids:
        newest = [(record.member, record) for record in await broker.admin.flows(arguments.limit) if record.member is not None]
        document = (flow_json(member.flow, [record]) for member, record in newest)
        return show(arguments, document, table(_NEWEST, newest, detail=_NEWEST_NOTE, color=None) if newest else iter([NONE]))
    found = [await flow_of(call, flow) for flow in ids_of(arguments.ids)]
    if arguments.json:
        print_json([flow_json(flow, records) if records else None for flow, records in found])
    for number, (flow, records) in enumerate(found if not arguments.json else ()):
        if not records:
            warn(f"no flow or job of a flow has the id {id_text(flow)}, or it is no longer kept")
        else:
            title = painted(f"flow {id_text(flow)}  {summary_of(records)}", BOLD)
            print(*[""] * (number > 0), title, *table(_COLUMNS, [*tree_of(records)], detail=_NOTE, color=None), sep="\n")
    return Exit.OK if all(records for _, records in found) else Exit.NOT_FOUND


_COLUMNS: Final = (
    Column(
        "JOB, AND BELOW IT WHAT IT WAITS FOR",
        lambda line: "  " * line.level + (line.text if line.record is None else line.record.job),
    ),
    Column(
        "STATUS",
        lambda line: "" if line.record is None else line.record.status,
        color=lambda line: None if line.record is None else OF_STATUS.get(line.record.status),
    ),
    Column("ID", lambda line: "" if line.record is None else id_text(line.record.id)),
)
_NOTE: Final = Column("NOTE", lambda line: line.note)

NONE: Final = "there are no flows: a.bind(x) | b makes one, and .delay() sends it"
_NEWEST: Final = (
    Column("FLOW", lambda each: id_text(each[0].flow)),
    Column("JOBS", lambda each: f"{each[0].number + 1:,}"),
    Column("AGE", lambda each: ago(each[1].created_at)),
    Column("LAST JOB", lambda each: each[1].job),
    Column("STATUS", lambda each: each[1].status, color=lambda each: OF_STATUS.get(each[1].status)),
)
_NEWEST_NOTE: Final = Column("NOTE", lambda each: TreeLine(0, each[1]).note)
