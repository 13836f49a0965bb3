"""`taskflow check`: whether the waiting jobs would run with the code here."""

from __future__ import annotations

import asyncio

import pytest

from taskflow.app.app import default_app
from tests.cli.inprocess import Cli

OLD = """
    from taskflow import job

    @job(name="fits", queue="mail")
    def fits(number: int) -> None: ...

    @job(name="renamed", queue="mail")
    def renamed(before: int) -> None: ...

    @job(name="retyped", queue="mail")
    def retyped(value: str) -> None: ...

    @job(name="gone", queue="slow")
    def gone() -> None: ...

    @job(name="apart", runs_in="process", queue="slow")
    def apart(value: str) -> None: ...
"""
NEW = """
    from taskflow import job

    @job(name="fits", queue="mail")
    def fits(number: int) -> None: raise SystemExit("a check must not run jobs")

    @job(name="renamed", queue="mail")
    def renamed(after: int) -> None: ...

    @job(name="retyped", queue="mail")
    def retyped(value: int) -> None: ...

    @job(name="apart", runs_in="process", queue="slow")
    def apart(value: int) -> None: ...
"""


@pytest.fixture
def waiting(cli: Cli) -> dict[str, list[str]]:
    """Return the ids of jobs that the old code has sent, by their names; two of "fits" were delayed."""
    cli.write("old.py", OLD)
    cli.write("new.py", NEW)
    old = cli.load("old")

    async def send() -> dict[str, list[str]]:
        sent = {
            "fits": [await old.fits.delay(1), *[await old.fits.options(after=3600).delay(2) for _ in range(2)]],
            "renamed": [await old.renamed.delay(1)],
            "retyped": [await old.retyped.delay("a"), await old.retyped.delay("b")],
            "gone": [await old.gone.delay()],
            "apart": [await old.apart.delay("a")],
        }
        await default_app().close()
        return {name: [handle.id for handle in handles] for name, handles in sent.items()}

    ids = asyncio.run(send())
    default_app().registry._jobs.clear()
    return ids


def test_check_reports_calls_that_would_park_or_fail_with_an_example_and_a_reason(cli: Cli, waiting: dict[str, list[str]]) -> None:
    told = cli.json("check", "new", code=1)
    jobs = {job["job"]: job for job in told["jobs"]}
    counts = {name: (job["fits"], job["parks"], job["fails"]) for name, job in jobs.items()}
    assert counts == {"fits": (3, 0, 0), "renamed": (0, 1, 0), "retyped": (0, 0, 2), "gone": (0, 1, 0), "apart": (0, 0, 1)}
    [renamed], [retyped], [gone] = (jobs[name]["problems"] for name in ("renamed", "retyped", "gone"))
    assert (renamed["outcome"], renamed["example"]) == ("park", waiting["renamed"][0])
    assert "before" in renamed["reason"]
    assert (retyped["outcome"], retyped["count"]) == ("fail", 2)
    assert retyped["example"] in waiting["retyped"]
    assert "a worker that knows the job 'gone'" in gone["reason"]
    text = cli("check", "new", code=1).out.splitlines()
    assert text[0].split() == ["FITS", "PARKS", "FAILS", "JOB"]
    assert text[-2] == "5 of 8 jobs would not run with this code"
    assert text[-1].startswith("A parked job waits for up to 7 days: deploy the code that sent it")
    assert f"    for example {waiting['gone'][0]}" in text


def test_the_reasons_are_those_of_a_worker(cli: Cli, waiting: dict[str, list[str]]) -> None:
    """A worker with the same code parks and fails exactly these jobs."""
    told = {job["job"]: job["problems"] for job in cli.json("check", "new", "--queue", "mail", code=1)["jobs"]}
    default_app().registry._jobs.clear()
    cli.forget_modules()
    cli.write("new.py", NEW.replace('raise SystemExit("a check must not run jobs")', "..."))
    cli("worker", "new", "--drain", "--drain-horizon", "0", "--queues", "mail", code=1)
    [renamed] = cli.json("jobs", waiting["renamed"][0])
    assert renamed["waiting_for"] == told["renamed"][0]["reason"]
    reasons = {job["reason"] for job in cli.json("jobs", *waiting["retyped"])}
    assert told["retyped"][0]["reason"] in reasons


def test_if_all_jobs_fit_check_exits_with_0_and_says_how_many_it_read(cli: Cli, waiting: dict[str, list[str]]) -> None:
    cli("cancel", *waiting["gone"], *waiting["retyped"], *waiting["renamed"], *waiting["apart"])
    assert cli("check", "new").out.splitlines()[-1] == "all 3 jobs would run with this code"
    out = cli("check", "new", "--limit", "2").out
    assert "checked 2 of 3 jobs in mail: use --limit to check more\n" in out
    assert cli.json("check", "new", "--queue", "slow") == {"jobs": [], "queues": [{"queue": "slow", "checked": 0, "of": 0}]}
    assert "queue 'snow' has never had a job; did you mean slow?" in cli("check", "new", "--queue", "snow", code=4).err


IN_FLOWS = """
    from taskflow import group, job

    @job(name="first")
    def first(number: int) -> int: ...

    @job(name="follows")
    def follows({takes}: int, by: {kind} = 1) -> int: ...

    @job(name="total")
    def total(numbers: list[int], plus: int) -> int: ...

    flow = group([first.bind(1) | follows.partial(2)]) | total.partial(3)
"""


@pytest.mark.parametrize(("now", "counts"), [(("n", "int"), (1, 0, 0)), (("m", "int"), (0, 1, 0)), (("n", "list[str]"), (0, 0, 1))])
def test_a_job_in_a_flow_lacks_a_result_that_it_will_get(cli: Cli, now: tuple[str, str], counts: tuple[int, int, int]) -> None:
    """A deploy that renames the parameter parks it, and one that changes another argument fails it."""
    cli.write("before.py", IN_FLOWS.format(takes="n", kind="int"))
    cli.write("now.py", IN_FLOWS.format(takes=now[0], kind=now[1]).replace("flow = group", "# flow = group").replace(" = 1)", ")"))
    before = cli.load("before")

    async def send() -> None:
        await before.flow.delay()
        await default_app().close()

    asyncio.run(send())
    default_app().registry._jobs.clear()
    jobs = {job["job"]: (job["fits"], job["parks"], job["fails"]) for job in cli.json("check", "now", code=0 if counts[0] else 1)["jobs"]}
    assert jobs == {"first": (1, 0, 0), "follows": counts, "total": (1, 0, 0)}
