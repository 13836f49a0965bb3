"""The pages: on each store, below a prefix, without a script."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, asgi

from taskflow import Cron, configure, operate, schedules
from taskflow.app.app import default_app
from taskflow.broker.admin import EXAMINED
from taskflow.dashboard import Access, charts, dashboard, pages, rendering
from taskflow.model import wording
from taskflow.model.clock import ManualClock
from taskflow.model.codec import Limits, encode_by_name, encode_value
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.fingerprint import cause_of
from taskflow.model.flow import Member, Tie
from taskflow.model.ids import id_text
from taskflow.model.limits import RATE, Gate, gate_id
from taskflow.model.measures import Measure, MeasuresRecord, pack_measures
from taskflow.model.verdict import Failed, Parked, RunError, Settlement
from tests.dashboard.site import ADA, PREFIX, Page, Site
from tests.support.harnesses import MemoryHarness
from tests.support.verdicts import failed, retried, settlement, succeeded
from tests.support.world import World
from tests.unit.app.jobs import add, nothing


def payload(**arguments: Any) -> bytes:
    return encode_by_name(arguments, job="work", limits=Limits())


async def scene(world: World) -> dict[str, str]:
    """Jobs in several states. Returns their ids."""
    await world.broker.admin.pause("paused")
    session = await world.a_session("web-1:7", queues=("mail",), concurrency=4)
    ready = await world.add(queue="mail", job="letter", tags=("import:42",), payload=payload(to="ada", password="xyzzy"))
    scheduled = await world.add(queue="mail", after=3_600.0)
    bad = await world.running(session, queue="mail:bad", job="bad", headers={"tenant": "7"})
    await world.settle(failed(bad))
    again = await world.running(session, queue="mail:again")
    await world.settle(retried(again, 60.0))
    runs = await world.running(session, queue="mail:runs")
    jobs = {"ready": ready, "scheduled": scheduled, "failed": bad.envelope, "again": again.envelope, "running": runs.envelope}
    return {name: id_text(envelope.id) for name, envelope in jobs.items()}


def rows(page: Page) -> list[str]:
    """Return the ids of the jobs that the page lists."""
    return [link.rpartition("/")[2] for link in page.links if link.startswith(f"{PREFIX}/jobs/")]


async def test_every_page_links_to_pages_that_are_there(world: World, site: Site) -> None:
    """This also holds below a prefix. No page is larger than 60 kB."""
    await scene(world)
    seen, left = set[str](), [PREFIX + "/"]
    while left:
        path = left.pop()
        seen.add(path)
        page = await site.get(path)
        assert len(page.answer.content) < 60_000
        if "<html" in page.answer.text:
            found = {link.partition("#")[0] for link in [*page.links, *(tag["href"] for tag in page.all("link"))]}
            left += [link for link in found if link and link not in seen and link not in left]
    ends = {path.removeprefix(PREFIX).partition("?")[0] for path in seen}
    assert {"/", "/jobs", "/failures", "/workers", "/schedules", "/charts", "/audit", "/act", "/queues/mail", "/style.css"} <= ends


@pytest.mark.parametrize("prefix", ["", "/admin"])
async def test_it_is_mounted_in_litestar(memory: World, prefix: str) -> None:
    await memory.add(queue="mail")
    app = Litestar([asgi("/jobs", is_mount=True, copy_scope=True)(dashboard(authorize=lambda request: ADA))], logging_config=None)
    transport = httpx.ASGITransport(app=app, root_path=prefix)  # type: ignore[arg-type]  # Litestar has other types for the same
    async with httpx.AsyncClient(transport=transport, base_url=f"http://host{prefix}") as client:
        for path in ("/jobs", "/jobs/", "//jobs/workers", "/jobs/queues/mail", "/jobs/style.css"):
            page = Page(await client.get(f"http://host{prefix}{path}"))
            assert page.code == 200
            assert [link for link in page.links if not link.startswith((f"{prefix}/jobs/", "#"))] == []


async def test_queues_workers_and_failures_are_shown(world: World, site: Site) -> None:
    assert "taskflow worker MODULE" in (await site.get("/workers")).text
    ids = await scene(world)
    overview = (await site.get("/")).text
    for text in ("1 ready", "1 worker, 1 of 4 slots busy", "paused", "builtins.ValueError: no such user"):
        assert text in overview
    queue = (await site.get("/queues/mail")).text
    assert ("1 ready" in queue, "web-1:7" in queue, "History()" in queue) == (True, True, True)
    assert "No running worker takes its jobs" in (await site.get("/queues/mail:bad")).text
    assert "web-1:7 1 of 4" in (await site.get("/workers")).text
    for path, is_listed in (("/failures", True), ("/failures?job=bad", True), ("/failures?job=letter", False)):
        failures = await site.get(path)
        assert (ids["failed"] in rows(failures)) == ("1 builtins.ValueError: no such user" in failures.text) == is_listed


async def test_a_queue_with_ready_jobs_that_no_worker_takes_is_marked(memory: World, site: Site) -> None:
    session = await memory.a_session(queues=("mail",))
    await memory.add(queue="mail")
    await memory.add(queue="thumbnails")
    await memory.add(queue="later", after=60.0)
    page = await site.get("/")
    assert "thumbnails no worker takes it 1 0 0 0 0 0s" in page.text
    assert page.text.count("no worker takes it") == 1
    await memory.beat(session, leaving=True)
    assert (await site.get("/")).text.count("no worker takes it") == 2


async def test_a_job_in_a_paused_queue_says_who_paused_it(world: World, site: Site) -> None:
    await operate.pause("mail", by="grace", reason="repair")
    page = await site.get(f"/jobs/{id_text((await world.add(queue='mail')).id)}")
    assert re.search(r"grace paused the queue \S+ ago \(repair\)\. Resume it on its page", page.text)
    assert f"{PREFIX}/queues/mail" in page.links
    assert "paused the queue" not in (await site.get(f"/jobs/{id_text((await world.add(queue='other')).id)}")).text


async def test_commands_in_a_cure_are_code(memory: World, site: Site) -> None:
    await memory.broker.admin.pause("mail")
    envelope = await memory.add(queue="mail")
    assert "<code>taskflow resume mail</code> ends the pause" in (await site.get(f"/jobs/{id_text(envelope.id)}")).answer.text


async def test_failures_since_the_newest_deploy_are_named_first(world: World, site: Site) -> None:
    def on(deploy: str, message: str, lease: Lease) -> Settlement:
        verdict = Failed(RunError("ValueError", message))
        return settlement(lease, verdict, cause=cause_of(verdict, deploy))

    old = await world.a_session("web-1:1", deploy="v1")
    world.clock.advance(60.0)
    for number, (deploy, message) in enumerate([("v1", "frequent")] * 5 + [("v2", "new")] * 3 + [("v2", "frequent")]):
        await world.settle(on(deploy, message, await world.running(old, queue=f"q{number}")))
    assert "Since v1 All Error Last 5 6 ValueError: frequent" in (await site.get("/")).text
    await world.a_session("web-2:1", deploy="v2")
    overview = await site.get("/")
    assert "Since v2 All Error Last 3 3 ValueError: new" in overview.text
    assert "1 6 ValueError: frequent" in overview.text
    failures = await site.get(next(link for link in overview.links if "/failures?deploy=v2#" in link))
    assert failures.text.index("3 ValueError: new new") < failures.text.index("1 ValueError: frequent")
    assert "since the newest deploy, v2" in failures.text
    assert failures.text.count("of every deploy") == 1
    assert "Retry from all 6, of every deploy, the newest first: in stages of 1, the rest ..." in failures.text  # for the whole cause
    assert "on deploy v1" in (await site.get("/failures", deploy="v1", queue="q1")).text
    assert [group.count for group in await operate.failures(deploy="v2")] == [3, 6]
    await world.a_session("web-3:1", deploy="v1")  # a restart
    assert "Since v2 All" in (await site.get("/")).text
    world.clock.advance(1.0)
    await world.a_session("web-4:1", deploy="v3")
    assert "Since v3 All Error Last 0 6 ValueError: frequent" in (await site.get("/")).text
    assert "No failed job matches on deploy v3" in (await site.get("/failures", deploy="v3")).text


async def test_jobs_are_filtered_by_the_url(world: World, site: Site) -> None:
    ids = await scene(world)
    assert sorted(rows(await site.get("/jobs"))) == sorted(ids.values())
    queries: list[tuple[dict[str, Any], list[str]]] = [
        ({"status": "failed"}, ["failed"]),
        ({"queue": "mail"}, ["scheduled", "ready"]),
        ({"queue": "mail", "status": "ready"}, ["ready"]),
        ({"job": "letter"}, ["ready"]),
        ({"tag": "import:42"}, ["ready"]),
        ({"error": "SUCH user", "status": "failed"}, ["failed"]),
        ({"header": "tenant=7"}, ["failed"]),
        ({"header": "tenant=8"}, []),
    ]
    for query, names in queries:
        page = await site.get("/jobs", **query)
        assert rows(page) == [ids[name] for name in names], query
        for name, text in query.items():
            assert page.all("input", name=name, value=text)
    page = await site.get("/jobs", code=400, status="odd")
    assert "status='odd': expected one of held" in page.text
    await site.get("/jobs", code=400, cursor="nonsense")


async def test_a_job_is_found_by_its_id(memory: World, site: Site) -> None:
    """The form's filters are ignored, because they were filled in before."""
    envelope = await memory.add()
    for text in (id_text(envelope.id), f" {envelope.id.hex()} "):
        answer = await site.client.get(f"{PREFIX}/jobs", params={"id": text, "status": "failed", "queue": ""})
        assert (answer.status_code, answer.headers["location"]) == (303, f"{PREFIX}/jobs/{id_text(envelope.id)}")
    assert (await site.get("/jobs")).all("input", name="id")
    await site.get("/jobs", code=400, id="<b>")


async def test_lists_of_ended_jobs_say_when_they_ended(world: World, site: Site) -> None:
    await scene(world)
    for status, is_shown in (("failed", True), ("running", False), ("", False)):
        assert ("Sent Ended Attempt" in (await site.get("/jobs", status=status)).text) is is_shown


async def test_a_short_id_is_refused_above_the_list(memory: World, site: Site) -> None:
    """The filters stay, and the list has whole ids to copy."""
    text = id_text((await memory.add(queue="mail")).id)
    page = await site.get("/jobs", code=400, id=f"…{text[-12:]}", queue="mail")
    assert "This is not a whole id, which has 36 characters" in page.text
    assert page.all("input", name="id", value=f"…{text[-12:]}")
    assert page.all("input", name="queue", value="mail")
    assert f" {text} " in page.text


async def test_jobs_are_listed_in_pages(world: World, site: Site) -> None:
    added = [id_text((await world.add()).id) for _ in range(120)]
    page, found = await site.get("/jobs", status="ready"), list[str]()
    while True:
        found += rows(page)
        following = page.all("a", rel="next")
        if not following:
            break
        page = await site.get(following[0]["href"])
    assert sorted(found) == sorted(added)


async def test_the_event_loop_serves_others_while_a_page_is_rendered(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await memory.enqueue(*[memory.an_envelope() for _ in range(40)])
    monkeypatch.setattr(rendering, "SLICE", 0.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    await site.get("/jobs")
    task.cancel()
    assert turns > 40, "at least one for each row"


async def test_filters_suggest_the_names_that_are_known(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of queues, of jobs in the list and of those that workers know, at most `MAX_NAMES`."""
    await memory.a_session(jobs=("shop.mail.welcome", "shop.cart.remind"))
    await memory.add(queue="mail", job="letter")
    page = await site.get("/jobs")
    assert [tag["value"] for tag in page.all("option")] == ["mail", "letter", "shop.cart.remind", "shop.mail.welcome"]
    assert page.all("input", name="job", list="jobs", placeholder="whole name")
    monkeypatch.setattr(pages, "MAX_NAMES", 1)
    assert [tag["value"] for tag in (await site.get("/jobs")).all("option")] == ["mail", "letter"]
    assert "must be given whole" in (await site.get("/jobs", job="lett")).text


async def test_a_page_of_jobs_reads_a_bounded_number(memory: World, site: Site) -> None:
    await memory.enqueue(*[memory.an_envelope() for _ in range(EXAMINED + 1)])
    page = await site.get("/jobs", job="another")
    assert f"None of the {EXAMINED:,} jobs that were read matches and is still kept" in page.text
    assert page.all("a", rel="next")


async def test_a_job_says_why_it_waits_and_what_was_done(world: World, site: Site) -> None:
    ids = await scene(world)
    ready = await site.get(f"/jobs/{ids['ready']}")
    assert "it has been ready for" in ready.text
    assert "letter" in ready.text
    assert f"{PREFIX}/jobs?tag=import%3A42" in ready.links
    bad = await site.get(f"/jobs/{ids['failed']}")
    assert "builtins.ValueError: no such user; this error is not retried" in bad.text
    assert "Traceback: line 1" in bad.text
    assert "attempt 1 started on web-1:7" in bad.text
    assert bad.all("rect")[0]["class"] == "run failed"
    again = await site.get(f"/jobs/{ids['again']}")
    assert "attempt 1 of 10 failed: builtins.ValueError: no such user; the next one starts" in again.text
    assert "it was sent for later" in (await site.get(f"/jobs/{ids['scheduled']}")).text
    assert "worker web-1:7 took it" in (await site.get(f"/jobs/{ids['running']}")).text


@pytest.mark.parametrize(
    ("headers", "is_shown"),
    [
        ({"traceparent": f"00-{'7a' * 16}-{'01' * 8}-01"}, True),
        ({"sentry-trace": f"{'7a' * 16}-{'01' * 8}-1"}, True),
        ({"traceparent": "x"}, False),
    ],
)
async def test_a_job_names_its_trace(memory: World, site: Site, headers: dict[str, str], is_shown: bool) -> None:
    job = await memory.add(headers=headers)
    assert (f"Trace {'7a' * 16}" in (await site.get(f"/jobs/{id_text(job.id)}")).text) is is_shown


async def test_every_page_has_the_keys(memory: World, site: Site) -> None:
    for path in ("/", "/jobs", "/audit", "/nothing"):
        page = await site.get(path, code=404 if path == "/nothing" else 200)
        assert page.all("dialog", id="keys")
        assert page.all("a", **{"class": "skip"}, href="#main")
        assert "next or previous row" in page.text
    for name in rendering.FILES:
        answer = (await site.get(f"/{name}")).answer
        assert answer.headers["content-type"].startswith(rendering.KINDS[Path(name).suffix])
        assert "immutable" in answer.headers["cache-control"]


async def test_the_pages_of_a_job_and_a_queue_show_its_limits(world: World, site: Site) -> None:
    limit, rate = Gate(gate_id("imports", "<acme>"), "imports", "<acme>", 1), Gate(gate_id("api", "", kind=RATE), "api", "", 6, 60_000_000)
    holder, waiting = [await world.add(queue="imports", limits=(limit,)) for _ in range(2)]
    rated = [await world.add(queue="calls", limits=(rate,)) for _ in range(2)][-1]
    page = await site.get(f"/jobs/{id_text(waiting.id)}")
    assert "it waits for a slot of limit imports of <acme>: 1 of 1 is taken" in page.text
    assert "sent; waits for limit imports of <acme>" in page.text
    assert "is due" not in page.text
    assert f"imports <acme> 1 of 1 1 when a run ends {id_text(holder.id)} ready" in page.text
    assert f"{PREFIX}/jobs/{id_text(holder.id)}" in page.links
    assert [button["value"] for button in page.all("button", name="action")] == ["cancel"]  # "Run now" skips no limit
    assert "Limits of its jobs" in (queue := await site.get("/queues/imports")).text
    assert f"{PREFIX}/jobs/{id_text(holder.id)}" in queue.links
    assert "Limits of its jobs" not in (await site.get("/queues/calls")).text
    assert "api 6 in 1m in 20s" in (await site.get(f"/jobs/{id_text(rated.id)}")).text
    found = (await site.get("/api/v1/limits", limit="imports")).answer.json()
    assert [(each["limit"], each["holders"][0]["id"]) for each in found] == [("imports", id_text(holder.id))]
    job = (await site.get(f"/api/v1/jobs/{id_text(waiting.id)}")).answer.json()
    assert [each["limit"] for each in job["limits"]] == ["imports"]


async def test_parked_jobs_that_no_worker_knows_are_named(world: World, site: Site) -> None:
    session = await world.a_session(jobs=("letter",))
    for name in ("gone", "letter"):
        await world.settle(settlement(await world.running(session, job=name), Parked(wording.UNKNOWN_JOB % name, 60.0)))
    page = await site.get("/")
    assert "parked Job gone (1): no running worker knows it" in page.text
    assert "Job letter" not in page.text
    assert f"{PREFIX}/jobs?job=gone&status=scheduled" in page.links


async def test_a_parked_job_has_not_started(world: World, site: Site) -> None:
    lease = await world.running(await world.a_session("web-1:7"))
    await world.settle(settlement(lease, Parked(wording.UNKNOWN_JOB % "work", 60.0)))
    page = await site.get(f"/jobs/{id_text(lease.envelope.id)}")
    assert "parked: no worker can run it. It waits for a worker that knows the job 'work'" in page.text
    assert ("Started" in page.text, "web-1:7" in page.text) == (False, False)


async def test_a_ready_job_is_explained_at_once(world: World, site: Site) -> None:
    """The command measures the rate for a second. A page does not."""
    await world.a_session()
    first, second = await world.add(), await world.add()
    began = time.monotonic()
    page = await site.get(f"/jobs/{id_text(second.id)}")
    assert time.monotonic() - began < 0.9
    assert "behind 1 other in queue default" in page.text
    assert "is the next one in queue default" in (await site.get(f"/jobs/{id_text(first.id)}")).text


async def test_arguments_are_hidden_and_secrets_always(world: World, site: Site) -> None:
    ids = await scene(world)
    shown = await site.get(f"/jobs/{ids['ready']}")
    assert '"ada"' in shown.text
    assert "[hidden]" in shown.text
    async with Site(lambda request: Access("eve", actions=True)) as other:
        hidden = await other.get(f"/jobs/{ids['ready']}")
    assert '"ada"' not in hidden.answer.text
    assert "show_arguments=True" in hidden.text
    assert "xyzzy" not in shown.answer.text + hidden.answer.text
    lease = await world.running(payload=payload(x=1), keep_result=1e6)
    await world.settle(succeeded(lease, encode_value({"rows": 7}, limits=Limits())))
    path = f"/jobs/{id_text(lease.envelope.id)}"
    assert '{"rows": 7}' in (await site.get(path)).text
    async with Site(lambda request: Access("eve", actions=True)) as other:
        assert "rows" not in (await other.get(path)).text


@pytest.mark.parametrize(
    "path", ["/jobs/nonsense", f"/jobs/{id_text(bytes(16))}", "/queues/nobody", "/act/nothing", "/nothing", "/jobs/a/b"]
)
async def test_a_page_that_does_not_exist_is_404(memory: World, site: Site, path: str) -> None:
    page = await site.get(path, code=404)
    assert page.all("nav")


async def test_schedules_are_listed_and_acted_on(world: World, site: Site) -> None:
    assert "There are no schedules" in (await site.get("/schedules")).text
    await schedules.put("nightly", nothing.bind(), Cron("0 3 * * *", tz="Europe/Paris"))
    page = await site.get("/schedules")
    assert "nightly 0 3 * * * Europe/Paris" in page.text
    assert page.all("button", value="pause")
    page = await site.post("/schedules", name="nightly", action="pause", reason="repair")
    assert "paused" in page.text
    assert page.all("button", value="resume")
    page = await site.post("/schedules", name="nightly", action="trigger")
    assert page.answer.url.path.startswith(f"{PREFIX}/jobs/")
    assert "The schedule has sent this job." in page.text
    assert nothing.name in page.text
    await site.post("/schedules", name="nightly", action="resume")
    await site.post("/schedules", code=404, name="nonsense", action="pause")
    await site.post("/schedules", code=400, name="nightly", action="remove")
    audit = await site.get("/audit")
    assert [verb in audit.text for verb in ("schedules.pause", "schedules.trigger", "schedules.resume", "ada", "repair")] == [True] * 5


async def test_a_schedule_of_a_flow_names_its_jobs(world: World, site: Site) -> None:
    await schedules.put("report", add.bind(1, 2) | add | nothing.bind(), Cron("0 3 * * *"))
    [info] = await schedules.list()
    page = await site.get("/schedules")
    jobs = f"3 jobs: 2 {add.name}, {nothing.name}"
    assert info.flow == jobs
    assert jobs in page.text
    page = await site.post("/schedules", name="report", action="trigger")
    assert "3 jobs: 2 held, 1 ready" in page.text


async def test_a_schedule_whose_job_is_live_is_not_triggered_again(memory: World, site: Site) -> None:
    await schedules.put("nightly", nothing.bind(), Cron("0 3 * * *"), overlap="skip")
    await site.post("/schedules", name="nightly", action="trigger")
    assert "is live" in (await site.post("/schedules", code=409, name="nightly", action="trigger")).text


async def test_the_audit_log_has_pages(memory: World, site: Site) -> None:
    await memory.add(queue="mail")
    for number in range(60):
        await site.post("/queues/mail", action="resume" if number % 2 else "pause", reason=f"r{number}-")
    page = await site.get("/audit")
    assert "r59-" in page.text
    older = await site.get(page.all("a", rel="next")[0]["href"])
    assert "r59-" not in older.text
    assert "r9-" in older.text


# --- charts ---------------------------------------------------------------------------------------------------------

MAIL = Measure(runs={"succeeded": 30, "failed": 10, "retried": 20}, waits={11: 40, 20: 20}, times={21: 60}, waited=1, ran=1)


async def test_charts_show_the_history_and_teach_how_to_record_one(site: Site) -> None:
    async with World(MemoryHarness, clock=ManualClock(datetime.now(UTC))) as world:
        with default_app().using(world.broker):
            assert "configure(telemetry=[History()])" in (await site.get("/charts")).text
            await world.add(queue="mail")
            await world.broker.admin.record_measures(bytes(16), pack_measures({("mail", "letter"): MAIL, ("other", "x"): Measure()}))
            page = await site.get("/charts")
            titles = ["Runs per minute", "Wait, median and 95th percentile", "Run time, median and 95th percentile"]
            assert [tag["aria-label"] for tag in page.all("svg")] == titles
            plots = [json.loads(tag["data-plot"]) for tag in page.all("live-plot")]
            assert [(plot["title"], plot["unit"]) for plot in plots] == list(zip(titles, ("rate", "seconds", "seconds"), strict=True))
            assert [[max(filter(None, each["values"])) for each in plot["series"]] for plot in plots] == [
                [60, 30],
                [1.048576, 0.002048],
                [2.097152] * 2,
            ]
            assert all(len(each["values"]) == len(plot["x"]) for plot in plots for each in plot["series"])
            assert "60 30 2ms 1.0s 2.1s 2.1s" in page.text
            assert "60 30" in (await site.get("/charts", hours=24, queue="mail", job="letter")).text
            assert "No run was measured in this time" in (await site.get("/charts", queue="other")).text
            assert "Runs per minute in the last hour" in (await site.get("/")).text
            queue = await site.get("/queues/mail")
            assert [tag["aria-label"] for tag in queue.all("svg")] == ["Waits in the last day", "Run times in the last day"]
            assert "letter 60 2ms 1.0s 2.1s 2.1s" in queue.text
            assert [each["name"] for each in json.loads(queue.all("live-plot")[0]["data-plot"])["series"]] == ["Runs"]
            assert "Below Runs 2ms" in queue.text


async def test_deploys_are_marked_in_charts_and_split_histograms(site: Site) -> None:
    now = datetime.now(UTC)
    async with World(MemoryHarness, clock=ManualClock(now - timedelta(minutes=40))) as world:
        with default_app().using(world.broker):
            await world.add(queue="mail")
            for number, (deploy, wait) in enumerate((("v1", 20), ("v1", 20), ("v2", 24), ("v2", 24))):
                measure = Measure(runs={"succeeded": 10}, waits={wait: 10}, times={21: 10}, deploys={deploy: 10})
                await world.broker.admin.record_measures(bytes([number] * 16), pack_measures({("mail", "letter"): measure}))
                world.clock.advance(600.0)
            page = await site.get("/charts")
            assert [tag["class"] for tag in page.all("path") if tag["class"] == "deploy"] == ["deploy"] * 3
            assert ("deploy v2" in page.text, "deploy v1" in page.text) == (True, False)
            plots = [json.loads(tag["data-plot"]) for tag in page.all("live-plot")]
            assert [[name for _, name in plot["deploys"]] for plot in plots] == [["v2"]] * 3
            assert plots[0]["deploys"][0][0] in plots[0]["x"]
            queue = await site.get("/queues/mail")
            assert "Waits in the last day before v2 since v2" in queue.text
            assert "Below Runs before v2 Runs since v2 1.0s 20 0" in queue.text
            assert "17s 0 20" in queue.text
            waits = json.loads(queue.all("live-plot")[0]["data-plot"])
            assert (waits["bins"][0], waits["bins"][-1], waits["unit"]) == ("1.0s", "17s", "share")
            assert [(each["name"], each["values"]) for each in waits["series"]] == [
                ("before v2", [1, 0, 0, 0, 0]),
                ("since v2", [0, 0, 0, 0, 1]),
            ]


@pytest.mark.parametrize(
    ("periods", "marks"),
    [
        ("", []),
        ("a", []),
        ("a a", []),
        ("a ab b", [(1, "b")]),
        ("a - b - a b", [(2, "b")]),
        ("a b - c", [(1, "b"), (3, "c")]),
        ("ab a b a", []),
        ("a " + "b " * charts.MAX_QUIET + "a", [(1, "b"), (charts.MAX_QUIET + 1, "a")]),  # rolled back
    ],
)
def test_a_deploy_begins_where_it_has_its_first_run(periods: str, marks: list[tuple[int, str]]) -> None:
    measures = [Measure(deploys={name: 1 for name in period if name != "-"}) for period in periods.split()]
    assert charts.deploys(measures) == marks


@pytest.mark.parametrize("hours", [1, 6, 24, 168, 720])
async def test_buckets_are_few_and_have_every_period(hours: int) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    ages = [(timedelta(minutes=1), 60), (timedelta(hours=hours) * 0.9, 3_600 if hours > 48 else 600 if hours > 3 else 60)]
    history = [MeasuresRecord(at=now - age, seconds=seconds, measures={("q", "j"): MAIL}) for age, seconds in ages]
    found = await charts.buckets(history, timedelta(hours=hours))
    assert 6 <= len(found) <= 62
    assert sum(bucket.measure.number for bucket in found) == 120
    assert (await charts.buckets(history, timedelta(hours=hours), queue="other"))[0].measure.number == 0
    passed = (datetime.now(UTC) - found[-1].at).total_seconds()
    assert found[-1].seconds <= max(60, passed)  # a rate of the present period is not that of a whole one


# --- the store is away ----------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_is_503(
    memory: World, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The page does not name the server. The log does."""

    async def away(*args: Any, **options: Any) -> Any:
        raise BrokerUnavailable("server 10.0.0.7 is away")

    monkeypatch.setattr(type(memory.broker.admin), "queues", away)
    configure(enqueue_timeout=0.1)
    page = await site.get("/", code=503)
    assert "10.0.0.7" not in page.answer.text
    await site.get("/queues/%1B%5B2J", code=503)
    assert "\x1b" not in caplog.text


async def test_the_page_of_a_job_shows_its_flow(world: World, site: Site) -> None:
    """Below each job are those that it waits for. The page's own job is highlighted."""
    last, flow = b"l" * 16, b"f" * 16
    counts = [
        Envelope(id=bytes([n]) * 16, job="count", payload=b"", member=Member(flow, n, 0, 2), joins=(last,), ties=(Tie(n),)) for n in (0, 1)
    ]
    total = Envelope(id=last, job="total", payload=b"", awaits=2, member=Member(flow, 2, 0, 2, "numbers", True, 2))
    await world.broker.enqueue([*counts, total])
    page = await site.get(f"{PREFIX}/jobs/{id_text(last)}")
    assert "3 jobs: 1 held, 2 ready" in page.text
    assert "it waits for 2 jobs of its flow, such as count (ready)" in page.text
    assert [f"{PREFIX}/jobs/{id_text(each.id)}" for each in (total, *counts)] == [
        link for link in page.links if "/jobs/0" in link or id_text(last) in link
    ]
    assert page.answer.text.count('class="level"') == 2
    assert page.answer.text.count('<tr class="current">') == 1
    other = await world.add()
    assert "it waits for" not in (await site.get(f"{PREFIX}/jobs/{id_text(other.id)}")).text


async def test_a_chart_has_a_gap_before_the_first_run_that_was_measured() -> None:
    """Before it, perhaps no worker had a History. After it, minutes without a run are zero, also for a job without any run."""
    now = datetime.now(UTC).replace(second=30)
    history = [
        MeasuresRecord(at=now - age, seconds=60, measures={("q", "j"): MAIL}) for age in (timedelta(minutes=20), timedelta(minutes=5))
    ]
    for job in ("j", "other"):
        found = await charts.buckets(history, timedelta(hours=1), job=job)
        drawn = charts.rate(found, "Runs per minute")
        plot = json.loads(html.unescape(drawn.partition('data-plot="')[2].partition('"')[0]))
        runs = plot["series"][0]["values"]
        assert runs[:40] == [None] * 40
        assert None not in runs[-19:]
        assert f"nothing measured before {history[0].at:%m-%d %H:%M} UTC" in drawn
    whole = charts.rate(await charts.buckets(history, timedelta(minutes=20)), "Runs per minute")
    assert "nothing measured" not in whole
