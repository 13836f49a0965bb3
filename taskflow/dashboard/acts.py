"""Performs the actions that forms request on jobs, queues and schedules. The audit log names the user.

An action on many jobs continues in the background after its request. Its page shows the progress, and can stop the action.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final, cast
from urllib.parse import quote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from taskflow.app import bulk_actions
from taskflow.app.app import default_app
from taskflow.app.bulk_actions import DEFAULTS, POSSIBLE, STOPPED, ActionName, ActionResult, perform, selection
from taskflow.app.operate import group_ids, operate
from taskflow.app.rollout import Rollout, stages_of
from taskflow.app.schedules import schedules
from taskflow.broker.admin import View
from taskflow.dashboard.guard import READ_ONLY
from taskflow.dashboard.memo import forget
from taskflow.dashboard.pages import LABELS, access_of, call, causes_of
from taskflow.dashboard.rendering import SAID, UNAVAILABLE, path_of, redirect, render, with_query
from taskflow.dashboard.selection import Fields, filters_of, form_of, refusing, view_of_filters, whole
from taskflow.model.errors import BrokerError, DecodeError, ScheduleConflict, TaskflowError, UnknownSchedule
from taskflow.model.ids import id_text, parse_id
from taskflow.model.record import LIVE, Status

log: Final = logging.getLogger("taskflow.dashboard")

TYPED_ABOVE: Final = 1_000  # an action on more jobs than this has to be confirmed by typing a word
MAX_COUNTED: Final = 2_000  # maximum number of jobs read for a count
MAX_IDS: Final = 500  # maximum number of jobs in one form
PATIENCE: Final = 1.0  # seconds that a request waits for an action before it shows the progress
STAGES: Final = (1, 10)
MAX_WAIT: Final = 600.0  # seconds for which a stage waits for its jobs
MAX_KEPT: Final = 50  # maximum number of ended actions that are kept for their pages
REFRESH: Final = "2"  # seconds
ELSEWHERE: Final = "Another process may know this action: this page reloads every two seconds. The audit log shows what was done."
# the paths that a form may name as the page it came from
BACK: Final = re.compile(r"/(?:jobs(?:/[0-9a-f-]{36})?|failures)(?:\?[^#\s]*)?(?:#g[0-9a-f]{16})?", re.ASCII)
DONE: Final[dict[ActionName, str]] = {"retry": "retried", "run-now": "made due now", "cancel": "cancelled", "purge": "discarded"}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs that an action applies to: the jobs with these ids, or all jobs in the view. `fields` are the form inputs that select them.
    If `group` names a cause, the ids are those of its jobs in the view. With `in_stages`, a few jobs are retried first. `back` is the path
    of the page that offered the action."""

    action: ActionName
    ids: Sequence[bytes] = ()
    view: View = View()
    fields: Sequence[tuple[str, str]] = ()
    group: str = ""
    in_stages: bool = False
    back: str = "/jobs"
    error: str = ""  # the newest error with this cause

    @property
    def label(self) -> str:
        return LABELS[self.action] + (" in stages" if self.in_stages else "")


async def target_of(request: Request, fields: Fields | Any) -> Target:
    """Return the jobs that a form or a URL selects. Raises HTTPException if it selects nothing, or jobs that the action doesn't apply
    to. If a form from one of the dashboard's pages selects nothing, the exception redirects to that page."""
    action = cast(ActionName, fields.get("action", ""))
    if action not in LABELS:
        raise HTTPException(400, "There is no such action.")
    ids, group, filters = fields.getlist("id"), fields.get("group", ""), filters_of(fields)
    back = fields.get("back", "") if BACK.fullmatch(fields.get("back", "")) else ""
    if back and not (ids or group or filters):
        raise HTTPException(303, SAID["none"], {"Location": redirect(request, back, "none").headers["location"]})
    back = back or (f"/failures#g{quote(group)}" if group else with_query("/jobs", filters))
    if bool(ids) == bool(group or filters):
        raise HTTPException(400, "Select jobs, or set a filter.")
    with refusing():
        if ids:
            if len(ids) > MAX_IDS:
                raise ValueError(f"at most {MAX_IDS} jobs can be selected: use a filter")
            distinct = list(dict.fromkeys(map(parse_id, ids)))
            return Target(action=action, ids=distinct, fields=[("id", id_text(each)) for each in distinct], back=back)
        if group:
            if action != "retry" or "status" in filters:
                raise ValueError("the jobs of a cause have failed and can only be retried: leave out status=, or use action=retry")
            view, in_stages = view_of_filters(filters), bool(fields.get("stages"))
            found = await call(lambda broker: group_ids(broker.admin, view, group))
            newest = await call(lambda broker: broker.read(found[:1])) if found else []
            error = "".join(each.reason or "" for each in newest if each)
            most = whole(fields.get("first"), len(found), 1, max(1, len(found)))
            inputs = {"group": group, **filters, "first": str(most) if most < len(found) else "", "stages": "1" if in_stages else ""}
            given = [(name, text) for name, text in inputs.items() if text]
            how: dict[str, Any] = {"group": group, "in_stages": in_stages, "back": back, "error": error}
            return Target(action=action, ids=found[:most], view=view, fields=given, **how)
        view = view_of_filters(filters)
        bulk_actions.check_view(action, view)
        view = view if view.statuses else msgspec.structs.replace(view, statuses=tuple(sorted(DEFAULTS[action])))
        return Target(action=action, view=view, fields=list(filters.items()), back=back)


async def number_of(target: Target) -> tuple[int, bool]:
    """Count the jobs that the action applies to. Also return True if there are more, because at most `MAX_COUNTED` are counted."""
    view = target.view
    if target.ids or target.group:
        return len(target.ids), False
    if LIVE.issuperset(view.statuses) and view == View(queue=view.queue, statuses=view.statuses):
        return await bulk_actions.count(default_app().client().call, view), False
    if view == View(queue=view.queue, job=view.job, statuses=(Status.FAILED,)):
        return sum(group.count for group in await causes_of(view.queue, view.job)), False
    number = 0
    async for records in bulk_actions.pages(default_app().client().call, view):
        number += len(records)
        if number > MAX_COUNTED:
            return MAX_COUNTED, True
    return number, False


class StartedAction:
    """An action that is running or has ended. `problem` says why it failed or why a stage ended it; otherwise it is empty."""

    def __init__(self, target: Target, by: str, reason: str) -> None:
        self.target = target
        self.by = by
        self.rollout: Rollout | None = None  # only for an action in stages
        self.problem = ""
        self.is_stopped = False
        self._result = ActionResult()
        self._began = time.monotonic()
        self._ended: float | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(reason))

    @property
    def result(self) -> ActionResult:
        return self._result if self.rollout is None else self.rollout.done

    @property
    def is_running(self) -> bool:
        return self._ended is None

    @property
    def seconds(self) -> float:
        return max(1e-3, (self._ended or time.monotonic()) - self._began)

    async def stop(self, why: str, patience: float) -> None:
        """Stop the action, and wait up to `patience` seconds. The audit log records what was done, and why the action stopped."""
        self.task.cancel(why)
        await asyncio.wait([self.task], timeout=patience)

    async def _run(self, reason: str) -> None:
        target, by, broker = self.target, self.by, default_app().client().call_for(self.target.action)
        try:
            if target.in_stages:
                which = {"group": target.group, **selection(target.view)}
                self.rollout = rollout = Rollout(broker, len(target.ids), which, by=by, reason=reason, wait=MAX_WAIT)
                for stage in stages_of(target.ids, STAGES):
                    if problem := await rollout.run(stage, waits=stage[-1] != target.ids[-1]):
                        self.is_stopped, self.problem = True, f"{problem}; {rollout.left_alone}"
                        break
            else:
                async for self._result in perform(broker, target.action, target.ids, target.view, by=by, reason=reason):
                    pass
        except BrokerError as error:
            log.error("a dashboard action failed: %s", error)  # for the operator only: the message names the server
            self.problem = UNAVAILABLE
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
            if not isinstance(error, TaskflowError):
                log.exception("a dashboard action failed")
        except asyncio.CancelledError:
            self.is_stopped = True
            raise
        finally:
            self._ended = time.monotonic()
            self.target = msgspec.structs.replace(target, ids=(), fields=())  # there may be 100,000 ids, and the page needs none of them
            forget()


class Acts:
    """The pages for actions. They know this process's running actions and some ended ones, but no actions of other processes."""

    def __init__(self) -> None:
        self._acts: dict[str, StartedAction] = {}

    async def preview(self, request: Request) -> Response:
        """Show how many jobs the action applies to, and a form that starts it."""
        if not access_of(request).actions:
            raise HTTPException(403, READ_ONLY)
        target = await target_of(request, request.query_params)
        return await _form(request, target, *await number_of(target), request.query_params.get("reason", ""))

    async def begin(self, request: Request) -> Response:
        fields = await form_of(request)
        target = await target_of(request, fields)
        if not target.ids and target.group:
            raise HTTPException(404, "No failed job has this cause any more.")
        (number, is_more), reason = await number_of(target), fields.get("reason", "").strip()
        if number > TYPED_ABOVE and fields.get("confirm", "").strip() != target.action:
            return await _form(request, target, number, is_more, reason, is_unconfirmed=True)
        name, act = self._started(target, access_of(request).actor, reason)
        await asyncio.wait([act.task], timeout=PATIENCE)
        if not act.is_running and not act.problem and act.result.affected == len(target.ids) == 1 and target.action != "purge":
            return redirect(request, f"/jobs/{id_text(target.ids[0])}", "asked" if act.result.asked else target.action)
        return redirect(request, f"/act/{name}")

    def _started(self, target: Target, by: str, reason: str) -> tuple[str, StartedAction]:
        """Start an action. If the user has already started it and it is still running, return that one: a form may be sent twice."""
        for name, act in self._acts.items():
            if act.is_running and (act.target.action, act.target.fields, act.by) == (target.action, target.fields, by):
                return name, act
        ended = [name for name, act in self._acts.items() if not act.is_running]
        for name in ended[: max(0, len(ended) - MAX_KEPT + 1)]:
            del self._acts[name]
        name = secrets.token_urlsafe(9)
        self._acts[name] = act = StartedAction(target, by, reason)
        return name, act

    async def progress(self, request: Request) -> Response:
        act = self._action_of(request)
        action, headers = act.target.action, {"Refresh": REFRESH} if act.is_running else None
        words = {"name": request.path_params["name"], "done": DONE[action], "which": _words(act.target)}
        return await render(request, "progress.html", act.target.label, headers=headers, act=act, **words)

    async def stop(self, request: Request) -> Response:
        await self._action_of(request).stop(f"{STOPPED} by {access_of(request).actor}", PATIENCE)
        return redirect(request, f"/act/{request.path_params['name']}")

    @property
    def are_running(self) -> bool:
        return any(act.is_running for act in self._acts.values())

    async def end(self) -> None:
        """Stop all actions of the running event loop, because its process is ending. The store must still be open."""
        loop = asyncio.get_running_loop()
        running = [act for act in self._acts.values() if act.is_running and act.task.get_loop() is loop]
        await asyncio.gather(*[act.stop(f"{STOPPED} by the end of its process", bulk_actions.RECORD_TIMEOUT) for act in running])

    def _action_of(self, request: Request) -> StartedAction:
        act = self._acts.get(request.path_params["name"])
        if act is None:
            raise HTTPException(404, ELSEWHERE, {"Refresh": REFRESH})
        return act


async def _form(request: Request, target: Target, number: int, is_more: bool, given: str = "", *, is_unconfirmed: bool = False) -> Response:
    return await render(
        request,
        "act.html",
        target.label,
        status=400 if is_unconfirmed else 200,
        target=target,
        number=number,
        is_more=is_more,
        which=_words(target),
        is_open="id" not in dict(target.fields) and "first" not in dict(target.fields),
        is_typed=number > TYPED_ABOVE,
        is_unconfirmed=is_unconfirmed,
        given=given,
        possible=sorted(POSSIBLE[target.action]),
        nav="failures" if target.group else "jobs",
    )


def _words(target: Target) -> dict[str, str]:
    """Return the conditions that select the target's jobs, for display: the cause, if any, and the view's. Empty for jobs given by id."""
    if target.group:
        return {"cause": target.error or target.group, **selection(target.view)}
    return {} if target.ids else selection(target.view)


async def amend_queue(request: Request) -> Response:
    fields, name, by = await form_of(request), request.path_params["name"], access_of(request).actor
    amend = {"pause": operate.pause, "resume": operate.resume}.get(fields.get("action", ""))
    if amend is None:
        raise HTTPException(400, "There is no such action.")
    with refusing():
        await amend(name, by=by, reason=fields.get("reason", "").strip())
    is_known = any(queue.name == name for queue in await operate.queues())  # some queues existed only because they were paused
    return redirect(request, path_of("queues", name) if is_known else "/", fields["action"])


async def amend_schedule(request: Request) -> Response:
    fields, by = await form_of(request), access_of(request).actor
    name, action, reason = fields.get("name", ""), fields.get("action", ""), fields.get("reason", "").strip()
    try:
        if action == "trigger":
            handle = await schedules.trigger(name, by=by, reason=reason)
            if not handle.is_new:
                raise ScheduleConflict(f"its job {handle.id} is live, and its overlap= allows only one")
            return redirect(request, f"/jobs/{handle.id}", action)
        if action not in ("pause", "resume"):
            raise HTTPException(400, "There is no such action.")
        await (schedules.pause if action == "pause" else schedules.resume)(name, by=by, reason=reason)
    except UnknownSchedule as error:
        raise HTTPException(404, "There is no such schedule any more.") from error
    except (ScheduleConflict, DecodeError) as error:
        raise HTTPException(409, f"The schedule was not changed: {error}") from error
    return redirect(request, "/schedules", action)
