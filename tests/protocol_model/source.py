"""Traces as Python source and in words."""

from __future__ import annotations

from dataclasses import MISSING, fields

from tests.protocol_model import traces


def to_source(trace: traces.Trace) -> str:
    """The constant of that trace, as `traces` has it."""
    steps = "".join(f"        {_step_source(step)},\n" for step in trace.steps)
    return f'{traces.constant_name(trace.rules)}: Final = Trace(\n    "{trace.rules}",\n    (\n{steps}    ),\n)\n'


def _step_source(step: traces.Step) -> str:
    arguments = list[str]()
    is_positional = True
    for field in fields(step):
        value = getattr(step, field.name)
        if field.default is not MISSING and value == field.default:
            is_positional = False
            continue
        text = str(value) if isinstance(value, bool | int) else _value_source(value)
        arguments.append(text if is_positional and field.default is MISSING and field.name != "expect" else f"{field.name}={text}")
    return f"{type(step).__name__}({', '.join(arguments)})"


def _value_source(value: str | tuple[str, ...] | None) -> str:
    named = {"OK": "OK", "STALE": "STALE", "SessionLost": "SESSION_LOST"}
    if isinstance(value, tuple):
        return "(" + ", ".join(f'"{name}"' for name in value) + (",)" if len(value) == 1 else ")")
    return "None" if value is None else named.get(value, f'"{value}"')


def in_words(step: traces.Step) -> str:
    """The step and what a correct broker answers, for people."""
    match step:
        case traces.Register(session, worker):
            return f"{session} registers, a life of {worker}"
        case traces.Claim(session, request, expect, is_lost):
            got = "SessionLost" if isinstance(expect, str) else f"it gets {', '.join(expect) or 'nothing'}"
            return f"{session} claims, request {request}: {got}{_lost(is_lost)}"
        case traces.Beat(session, names, seen, expect, lost, ghosts, is_lost):
            told = f"lost: {', '.join(lost) or 'none'}, ghosts: {', '.join(ghosts) or 'none'}" if expect == "OK" else expect
            return f"{session} beats, holding {', '.join(names) or 'nothing'}, having seen request {seen}: {told}{_lost(is_lost)}"
        case traces.Settle(lease, verdict, expect, is_lost):
            return f"{lease} is settled, {verdict}: {expect}{_lost(is_lost)}"
        case traces.Lapse(session):
            return f"{session} does not beat for its ttl; others do"
        case traces.GhostTime():
            return "the ghost time passes"
        case traces.Upkeep(limit):
            return "upkeep, until it is done" if limit is None else f"upkeep, {limit} move"
        case traces.Snapshot():
            return "from here on, the store's writes are not safe yet"
        case traces.Restore():
            return "the store loses them"
        case traces.Read(status, epoch):
            return f"the job is {status}, leased {epoch} times"


def _lost(is_lost: bool) -> str:
    return " (an answer that nobody receives)" if is_lost else ""
