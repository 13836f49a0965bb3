"""What people do in the dashboard: with one job, with selected ones, and with all that match."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from taskflow import ActionResult, operate
from taskflow.app import rollout
from taskflow.app.app import default_app
from taskflow.dashboard import acts, live, rendering
from taskflow.dashboard.application import dashboard_with
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import id_text, parse_id
from taskflow.model.limits import Gate, gate_id
from taskflow.model.record import Status
from taskflow.model.verdict import RunError, Settlement
from tests.dashboard.site import ADA, PREFIX, Page, Site
from tests.support.verdicts import failed, retried, succeeded
from tests.support.world import World


async def failed_jobs(world: World, number: int, queue: str = "mail") -> list[str]:
    session, envelopes = await world.a_session(), [world.an_envelope(queue=queue) for _ in range(number)]
    await world.enqueue(*envelopes)
    await world.settle(*[failed(lease) for lease in await world.claim(session, [queue])])
    return [id_text(envelope.id) for envelope in envelopes]


async def statuses(world: World, ids: list[str]) -> list[Status | None]:
    records = await world.broker.read([parse_id(each) for each in ids])
    return [None if record is None else record.status for record in records]


def form(page: Page) -> dict[str, Any]:
    """Return the fields that the form of a preview would send."""
    fields = dict[str, Any]()
    for tag in page.all("input", type="hidden"):
        fields[tag["name"]] = [*fields.get(tag["name"], []), tag["value"]]
    return fields


async def test_one_job_is_acted_on_and_its_page_shown(world: World, site: Site) -> None:
    [job] = await failed_jobs(world, 1)
    page = await site.post("/act", action="retry", id=job, reason="the service is back")
    assert page.answer.url.path == f"{PREFIX}/jobs/{job}"
    assert "The job is back in its queue." in page.text
    later = id_text((await world.add(after=3_600.0)).id)
    for action, status in (("run-now", Status.READY), ("cancel", Status.CANCELLED), ("retry", Status.READY), ("cancel", Status.CANCELLED)):
        page = await site.post("/act", action=action, id=later)
        assert await statuses(world, [later]) == [status]
        assert rendering.SAID[action] in page.text
    page = await site.get("/act", action="purge", id=later)
    assert "Discard 1 job?" in page.text
    page = await site.post("/act", **form(page))
    assert "1 job was discarded" in page.text
    assert await statuses(world, [later]) == [None]
    log = await world.broker.admin.actions()
    assert [record.action.kind for record in log] == ["purge", "cancel", "retry", "cancel", "run-now", "retry"]
    assert {record.action.by for record in log} == {"ada"}
    assert log[-1].action.reason == "the service is back"
    assert {f"{PREFIX}/jobs/{job}", f"{PREFIX}/jobs/{later}"} <= set((await site.get("/audit")).links)


async def test_a_cancel_of_a_running_job_is_confirmed(world: World, site: Site) -> None:
    """The page takes over the reason."""
    lease = await world.running()
    job = id_text(lease.envelope.id)
    for path in (f"/jobs/{job}", "/jobs?status=running"):
        [button] = (await site.get(path)).all("button", value="cancel")
        assert button["formmethod"] == "get"
    page = await site.get("/act", action="cancel", id=job, reason="wrong file")
    assert "Cancel 1 job?" in page.text
    assert page.all("input", name="reason", value="wrong file")
    assert "The running job was asked to stop." in (await site.post("/act", **form(page))).text
    assert "formmethod" not in (await site.get(f"/jobs/{id_text((await world.add()).id)}")).all("button", value="cancel")[0]


async def test_selected_jobs_are_acted_on(world: World, site: Site) -> None:
    """The page says which of them are unchanged, and why."""
    jobs, waiting = await failed_jobs(world, 3), id_text((await world.add(queue="other")).id)
    page = await site.post("/act", action="retry", id=[*jobs[:2], waiting])
    assert "2 jobs were retried" in page.text
    assert "1: it has not ended yet" in page.text
    assert await statuses(world, jobs) == [Status.READY, Status.READY, Status.FAILED]


@pytest.mark.parametrize("action", ["retry", "purge"])
async def test_an_action_on_no_selected_job_shows_the_list_again(memory: World, site: Site, action: str) -> None:
    await failed_jobs(memory, 1)
    [tag] = (await site.get("/jobs", status="failed", queue="mail")).all("input", name="back")
    fields: dict[str, Any] = {"action": action, "back": tag["value"]}
    page = Page(await site.client.get(f"{PREFIX}/act", params=fields, follow_redirects=True))
    for shown in (page, await site.post("/act", **fields)):
        assert "Nothing was done: select jobs first." in shown.text
        assert shown.all("input", name="queue", value="mail")


@pytest.mark.parametrize("back", ["//evil", "https://evil", "/jobs/../../logout", "/audit", "/jobs\n", "/failures#x"])
async def test_an_action_leads_back_to_lists_only(memory: World, site: Site, back: str) -> None:
    await site.post("/act", code=400, action="retry", back=back)
    assert f"{PREFIX}/jobs?queue=mail" in (await site.get("/act", action="retry", queue="mail", back=back)).links


async def test_the_pages_of_an_action_lead_back(memory: World, site: Site) -> None:
    """To the job, the filtered list or the cause that offered it."""
    jobs = await failed_jobs(memory, 3)
    cause = next(tag["id"] for tag in (await site.get("/failures")).all("article"))
    for path, back in (
        ("/jobs?status=failed&queue=mail", "/jobs?status=failed&queue=mail"),
        ("/failures?queue=mail", f"/failures?queue=mail#{cause}"),
    ):
        page = await site.get(next(link for link in (await site.get(path)).links if "action=retry" in link))
        assert PREFIX + back in page.links
        page = await site.post("/act", **form(page))
        assert PREFIX + back in page.links
        await operate.cancel(*jobs)
        await failed_jobs(memory, 3)
    fields = form(await site.get(f"/jobs/{jobs[0]}"))
    assert f"{PREFIX}/jobs/{jobs[0]}" in (await site.get("/act", action="purge", **fields)).links


async def test_all_that_match_are_counted_before_they_are_acted_on(world: World, site: Site) -> None:
    jobs, others = await failed_jobs(world, 4), await failed_jobs(world, 2, "other")
    page = await site.get("/jobs", status="failed", queue="mail")
    [link] = [link for link in page.links if "action=retry" in link]
    page = await site.get(link)
    assert "Retry 4 jobs?" in page.text
    assert await statuses(world, jobs) == [Status.FAILED] * 4
    page = await site.post("/act", **form(page), reason="fixed")
    assert "4 jobs were retried" in page.text
    assert await statuses(world, [*jobs, *others]) == [Status.READY] * 4 + [Status.FAILED] * 2
    [record] = await world.broker.admin.actions()
    assert (record.action.by, record.action.affected, record.action.reason) == ("ada", 4, "fixed")
    assert record.action.which == {"queue": "mail", "status": "failed"}


async def test_the_jobs_of_a_cause_are_retried_a_few_at_first(world: World, site: Site) -> None:
    jobs = await failed_jobs(world, 12)
    page = await site.get("/failures")
    links = [link for link in page.links if "action=retry" in link and "stages" not in link]
    assert [link.partition("first=")[2] for link in links] == ["1", "10", ""]
    for link, ready in zip(links, (1, 11, 12), strict=True):
        preview = await site.get(link)
        assert ("all jobs that match when you confirm" in preview.text) == (ready == 12)
        page = await site.post("/act", **form(preview))
        assert (await statuses(world, jobs)).count(Status.READY) == ready
    assert "No job matches" in (await site.get(links[-1])).text
    await site.post("/act", code=404, action="retry", group=links[-1].partition("group=")[2])


async def test_the_jobs_of_a_cause_are_listed(world: World, site: Site) -> None:
    jobs, session = await failed_jobs(world, 60), await world.a_session()
    await world.settle(failed(await world.running(session), RunError("builtins.OSError", "another", "")))
    [link] = [link for link in (await site.get("/failures", queue="mail")).links if "/jobs?group=" in link]
    found = list[str]()
    while link:
        page = await site.get(link)
        found += [tag["value"] for tag in page.all("input", name="id", type="checkbox")]
        link = next((tag["href"] for tag in page.all("a", rel="next")), "")
    assert sorted(found) == sorted(jobs)
    await site.get("/jobs", code=400, group="nonsense")


async def test_the_jobs_of_a_cause_that_match_are_retried(world: World, site: Site) -> None:
    jobs, others = await failed_jobs(world, 12), await failed_jobs(world, 3, "other")
    page = await site.get("/failures", queue="other")
    assert "in stages of 1, the rest" in page.text
    links = [link for link in page.links if "action=retry" in link]
    for link, number in zip(links, (3, 1, 3), strict=True):
        page = await site.get(link)
        assert f"{number} job" in page.text
        assert "queue other" in page.text
    await site.post("/act", **form(page))
    assert await statuses(world, [*jobs, *others]) == [Status.FAILED] * 12 + [Status.READY] * 3


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "PATIENCE", 0.0)
    monkeypatch.setattr(rollout, "POLL_INTERVAL", 0.01)


async def in_stages(site: Site) -> Page:
    """Begin to retry the first cause in stages, and return the page that shows the progress."""
    preview = await site.get(next(link for link in (await site.get("/failures")).links if "stages=1" in link))
    assert "in stages? cause builtins.ValueError: no such user The newest one first, then ten, then the rest" in preview.text
    assert "Only jobs that are cancelled or failed when you confirm are changed." in preview.text
    return await site.post("/act", **form(preview), reason="fixed")


async def until(site: Site, page: Page, text: str) -> Page:
    async with asyncio.timeout(20):
        while text not in page.text:
            await asyncio.sleep(0.01)
            page = await site.get(page.answer.url.path)
    return page


async def claimed(world: World, number: int) -> list[Lease]:
    session = await world.a_session()
    async with asyncio.timeout(20):
        while not (leases := await world.claim(session, ["mail"])):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(leases) == number
    return leases


@pytest.mark.usefixtures("_impatient")
async def test_a_cause_is_retried_in_stages_while_no_run_fails(world: World, site: Site) -> None:
    jobs = await failed_jobs(world, 30)
    page = await in_stages(site)
    for number in (1, 10, 19):
        leases = await claimed(world, number)
        if number != 19:
            page = await until(site, page, f"{number} of {number} job{'s' if number > 1 else ''} of this stage")
        assert (await statuses(world, jobs)).count(Status.RUNNING) == number
        await world.settle(*map(succeeded, leases))
    page = await until(site, page, "Retry in stages: done")
    assert "30 jobs were retried" in page.text
    assert "No job of the earlier stages failed again." in page.text
    assert any("/jobs?group=" in link for link in (await site.get("/audit")).links)
    log = [record.action for record in await world.broker.admin.actions()]
    assert [(each.kind, each.affected, each.by, each.reason) for each in log] == [
        ("retry", number, "ada", "fixed") for number in (19, 10, 1)
    ]


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("verdict", [failed, partial(retried, after=3_600.0)], ids=["failed", "retried"])
async def test_stages_stop_when_a_run_fails_again(world: World, site: Site, verdict: Callable[[Lease], Settlement]) -> None:
    """They also stop if the job has further attempts."""
    jobs = await failed_jobs(world, 30)
    page = await in_stages(site)
    await world.settle(*map(succeeded, await claimed(world, 1)))
    one, *others = await claimed(world, 10)
    world.clock.advance(1.0)
    await world.settle(verdict(one))
    page = await until(site, page, "Retry in stages: stopped")
    assert "1 of 10 failed again: builtins.ValueError: no such user (0" in page.text
    assert "); 19 of 30 were not retried" in page.text
    await world.settle(*map(succeeded, others))
    assert (await statuses(world, jobs)).count(Status.FAILED) == 19 + (verdict is failed)


@pytest.mark.usefixtures("_impatient")
async def test_stages_end_when_jobs_do_not(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "MAX_WAIT", 0.05)
    await failed_jobs(memory, 2)
    page = await until(site, await in_stages(site), "Retry in stages: stopped")
    assert "1 job has not ended within 0.05 s, for example " in page.text
    assert "; 1 of 2 were not retried" in page.text


@pytest.mark.usefixtures("_impatient")
async def test_stages_that_a_person_stops_leave_the_others_failed(memory: World, site: Site) -> None:
    await failed_jobs(memory, 30)
    [stop] = (await until(site, await in_stages(site), "of this stage")).all("form", method="post")
    assert "The other jobs remain failed." in (await site.post(stop["action"])).text


async def test_jobs_that_are_gone_hold_no_stage_up(memory: World) -> None:
    jobs = await failed_jobs(memory, 12)
    await operate.purge(jobs[0])
    retried = rollout.Rollout(default_app().client().call, 2, {}, by="ada", reason="", wait=0.0)
    assert [await retried.run(stage) for stage in rollout.stages_of(list(map(parse_id, jobs[:1])), (1,))] == [None]
    assert (retried.done.changed, retried.done.seen, retried.left_alone) == (0, 1, "1 of 2 were not retried")


async def test_many_jobs_need_a_word_that_is_typed(memory: World, site: Site) -> None:
    await memory.enqueue(*[memory.an_envelope(queue="mail") for _ in range(acts.TYPED_ABOVE + 1)])
    page = await site.get("/act", action="cancel", queue="mail")
    assert "Cancel 1,001 jobs?" in page.text
    assert page.all("input", name="confirm", pattern="cancel")
    for word in ("", "yes", "retry"):
        refused = await site.post("/act", code=400, **form(page), confirm=word)
        assert refused.all("input", name="confirm")
        assert "Nothing has been done yet" in refused.text
    assert (await operate.queues())[0].counts[Status.READY] == 1_001
    page = await site.post("/act", **form(page), confirm="cancel")
    assert "1,001 jobs were cancelled" in page.text


async def test_run_now_says_that_it_skips_no_limit(memory: World, site: Site) -> None:
    await memory.add(after=60.0)
    page = await site.get("/act", action="run-now", status="scheduled")
    assert "It skips no limit." in page.text
    assert "1 job was made due now" in (await site.post("/act", **form(page))).text


async def test_run_now_leaves_jobs_that_wait_at_a_limit(world: World, site: Site) -> None:
    """It changes nothing about them, so it counts them as refused, selected or by a filter."""
    limit = Gate(gate_id("imports", ""), "imports", "", 1)
    _, waiting = [await world.add(limits=(limit,)) for _ in range(2)]
    later = [await world.add(after=60.0) for _ in range(2)]
    page = await site.post("/act", action="run-now", id=[id_text(each.id) for each in (waiting, later[0])])
    assert "1 job was made due now" in page.text
    assert "1: it waits for a limit, which run-now doesn't skip" in page.text
    assert await operate.run_now(status="scheduled") == ActionResult(
        changed=1, refused={"it waits for a limit, which run-now doesn't skip": 1}
    )


async def test_a_count_is_bounded(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "MAX_COUNTED", 500)
    await memory.enqueue(*[memory.an_envelope(job="letter") for _ in range(1_100)])
    assert "Cancel more than 500 jobs?" in (await site.get("/act", action="cancel", job="letter")).text
    assert "Cancel 1,100 jobs?" in (await site.get("/act", action="cancel", status="ready")).text  # the store has counted these
    await failed_jobs(memory, 600)
    assert "Retry 600 jobs?" in (await site.get("/act", action="retry", status="failed", queue="mail")).text


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "retry"},
        {"action": "explode", "status": "failed"},
        {"action": "retry", "status": "ready"},
        {"action": "retry", "id": "nonsense"},
        {"action": "retry", "id": id_text(bytes(16)), "status": "failed"},
        {"action": "purge", "status": "ready", "error": "x"},
        {"action": "cancel", "group": "71efb6587dea8408"},
        {"action": "retry", "group": "no hexadecimal"},
        {"action": "retry", "group": "71efb6587dea8408", "status": "cancelled"},
        {"action": "retry", "group": "71efb6587dea8408", "id": id_text(bytes(16))},
        {"action": "retry", "id": [id_text(bytes([n // 256, n % 256] * 8)) for n in range(501)]},
        {"status": "failed"},
    ],
)
async def test_an_action_without_jobs_or_with_invalid_input_is_refused(memory: World, site: Site, fields: dict[str, Any]) -> None:
    [job] = await failed_jobs(memory, 1)
    await site.post("/act", code=400, **fields)
    await site.get("/act", code=400, **fields)
    assert await statuses(memory, [job]) == [Status.FAILED]
    assert await memory.broker.admin.actions() == []


@pytest.fixture
def begun(memory: World, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Add 900 jobs, of which a cancel has reached 500 when it waits for this event."""
    monkeypatch.setattr(acts, "PATIENCE", 0.5)
    may_continue, cancel = asyncio.Event(), memory.broker.cancel
    calls = 0

    async def slow(ids: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            await may_continue.wait()
        return await cancel(ids)

    monkeypatch.setattr(memory.broker, "cancel", slow)
    return may_continue


@pytest.mark.usefixtures("begun")
async def test_a_long_act_shows_its_progress_and_can_be_stopped(memory: World, site: Site) -> None:
    """What was done until then is not undone, and the audit log says who stopped it."""
    await memory.enqueue(*[memory.an_envelope(queue="mail") for _ in range(900)])
    page = await site.post("/act", action="cancel", queue="mail")
    assert "Cancel: running" in page.text
    assert "500 jobs were cancelled" in page.text
    assert page.answer.headers["refresh"] == "2"
    [stop] = page.all("form", method="post")
    page = await site.post(stop["action"])
    assert "Cancel: stopped" in page.text
    assert "The other jobs stay as they were." in page.text
    assert "refresh" not in page.answer.headers
    [record] = await memory.broker.admin.actions()
    assert (record.action.affected, record.action.stopped) == (500, "stopped by ada")
    assert (await operate.queues())[0].counts[Status.READY] == 400


async def test_a_form_that_is_sent_twice_begins_one_act(memory: World, site: Site, begun: asyncio.Event) -> None:
    await memory.enqueue(*[memory.an_envelope(queue="mail") for _ in range(900)])
    first, second = [await site.post("/act", action="cancel", queue="mail") for _ in range(2)]
    assert first.answer.url == second.answer.url
    other = await site.post("/act", action="cancel", queue="mail", status="ready")
    assert other.answer.url != first.answer.url
    begun.set()
    await until(site, first, "Cancel: done")
    again = await site.post("/act", action="cancel", queue="mail")
    assert again.answer.url != first.answer.url


@pytest.mark.usefixtures("begun")
async def test_the_end_of_the_process_is_recorded(memory: World) -> None:
    await memory.enqueue(*[memory.an_envelope(queue="mail") for _ in range(900)])
    running = acts.Acts()
    host = dashboard_with(live.Live(), running, lambda request: ADA)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=host), base_url="http://host") as client:
        await client.post("/act", data={"action": "cancel", "queue": "mail"}, headers={"Sec-Fetch-Site": "same-origin"})
    were_running = running.are_running
    await running.end()
    assert (were_running, running.are_running) == (True, False)
    [record] = await memory.broker.admin.actions()
    assert (record.action.affected, record.action.stopped) == (500, "stopped by the end of its process")


async def test_an_act_that_has_ended_keeps_no_ids(memory: World) -> None:
    """There may be many ids, and the pages of 50 acts are kept."""
    ids = [parse_id(each) for each in await failed_jobs(memory, 3)]
    act = acts.StartedAction(acts.Target(action="retry", ids=ids, group="71efb6587dea8408"), "ada", "")
    await act.task
    assert (act.result.changed, act.target.ids, act.target.group) == (3, (), "71efb6587dea8408")


async def test_a_store_that_goes_away_is_not_described(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message may name its server."""

    async def away(ids: Any) -> Any:
        raise BrokerRefused("redis://internal:6379 is another's")

    monkeypatch.setattr(memory.broker, "cancel", away)
    await memory.add(queue="mail")
    page = await site.post("/act", action="cancel", queue="mail")
    assert "Cancel: failed" in page.text
    assert "The store does not answer" in page.text
    assert "internal" not in page.text


async def test_an_act_that_the_store_breaks_off_says_so(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(ids: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(memory.broker, "cancel", fails)
    await memory.add(queue="mail")
    page = await site.post("/act", action="cancel", queue="mail")
    assert "Cancel: failed" in page.text
    assert "RuntimeError: a bug" in page.text


async def test_an_action_of_another_process_is_asked_for_again(memory: World, site: Site) -> None:
    page = await site.get("/act/another", code=404)
    assert page.answer.headers["refresh"] == "2"


async def test_a_queue_is_paused_and_resumed(world: World, site: Site) -> None:
    await world.add(queue="mail")
    page = await site.post("/queues/mail", action="pause", reason="repair")
    assert page.answer.url.path == f"{PREFIX}/queues/mail"
    assert "The pause has begun." in page.text
    assert page.all("button", value="resume")
    [queue] = await operate.queues()
    assert queue.is_paused
    await site.post("/queues/mail", action="resume")
    await site.post("/queues/mail", code=400, action="explode")
    await site.post("/queues/empty", action="pause")
    page = await site.post("/queues/empty", action="resume")
    assert page.answer.url.path == f"{PREFIX}/"
    await site.post("/queues/not%20a%20queue", code=400, action="pause")
    log = [record.action for record in await world.broker.admin.actions()]
    of_mail = [(each.kind, each.by, each.reason) for each in log if each.names == ("mail",)]
    assert of_mail == [("resume", "ada", ""), ("pause", "ada", "repair")]


async def test_ended_acts_are_forgotten_after_a_while(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "MAX_KEPT", 2)
    await memory.add(queue="mail")
    pages = [await site.post("/act", action="cancel", status="running") for _ in range(4)]
    codes = [(await site.client.get(page.answer.url)).status_code for page in pages]
    assert codes == [404, 404, 200, 200]
