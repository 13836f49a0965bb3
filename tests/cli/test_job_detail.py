"""`taskflow jobs ID`: arguments and result without secrets, the runs on a time line, the traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from taskflow.broker.protocol import Broker
from taskflow.model.codec import Limits, encode_by_name, encode_value
from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Progress, RunEnding, RunError
from tests.cli.hostile import HOSTILE, assert_safe
from tests.cli.inprocess import Cli
from tests.support.verdicts import failed, retried, succeeded

ID = id_text(bytes(16))
ARGUMENTS = {"card": {"number": "4242", "owner": "Ada"}, "api_key": "k-1", "amount": 7, "note": "long " * 100, "url": "pg://u:pw@h/x"}
FIRST = RunError("app.Gone", "first", "Traceback: one", ending=RunEnding.TIMED_OUT)
LAST = RunError("ValueError", f"last{HOSTILE}", f"Traceback: two\n{HOSTILE}", attempt=2)


def stored(**fields: Any) -> Callable[[Broker], Awaitable[None]]:
    """A job that has crashed once, failed once and, for its last run, settles as `last` says."""
    last: Callable[[Any], Any] = fields.pop("last", failed)

    async def do(broker: Broker) -> None:
        payload = encode_by_name(ARGUMENTS, job="pay", limits=Limits())
        headers = {"authorization": "Bearer b-1", "trace": "t-1"}
        await broker.enqueue(
            [Envelope(**{"id": bytes(16), "job": "pay", "payload": payload, "headers": headers, "secrets": ("number",), **fields})]
        )
        for number in range(3):
            session = Session(id=bytes([number]) * 16, name=f"somewhere:{number}")
            await broker.register(session)
            [lease] = await broker.claim(session.id, 1, ["default"], 1)
            if number == 0:
                await broker.beat(Beat.of_death(session.id, "signal SIGKILL"))
            else:
                await broker.settle([retried(lease, error=FIRST, ran_for=2.5) if number == 1 else last(lease)])

    return do


def fails_at_last(lease: Any) -> Any:
    return failed(lease, LAST, ran_for=0.25)


def returns_a_secret(lease: Any) -> Any:
    return succeeded(lease, encode_value({"token": "t-1", "kind": "x"}))


def keeps_its_arguments(lease: Any) -> Any:
    return succeeded(lease, encode_value({"token": "t-1", "kind": "x"}), arguments=lease.envelope.payload)


def returns_half_way(lease: Any) -> Any:
    return succeeded(lease, progress=Progress(0.5, "half way"))


@pytest.fixture
def failed_job(cli: Cli) -> None:
    cli.with_broker(stored(last=fails_at_last), Rules(crash_backoff=(0.0,)))


def test_a_failed_job_is_shown_with_arguments_runs_and_traceback(cli: Cli, failed_job: None) -> None:
    out = cli("jobs", ID).out
    assert_safe(out)
    lines = out.splitlines()
    assert '  card     {"number": "[hidden]", "owner": "Ada"}' in lines
    assert "  api_key  [hidden]" in lines
    assert '  url      "pg://u:[hidden]@h/x"' in lines
    assert "  authorization  [hidden]" in lines
    assert not any(secret in out for secret in ("4242", "k-1", "b-1", "pw@"))
    start = lines.index("time line (UTC)") + 2
    assert [line[25:] for line in lines[start : start + 5]] == [
        "sent",
        "attempt 1 started on somewhere:0",
        "attempt 1: worker somewhere:0 was lost while it had this job (crash 1): signal SIGKILL",
        "attempt 1 started on somewhere:1",
        "attempt 1 timed out: app.Gone: first",
    ]
    assert lines[start + 4].split()[1] == "+2.5s"
    assert any("attempt 2 failed: ValueError: last" in line and "+250ms" in line for line in lines)
    assert "Traceback: two" in out
    assert "Traceback: one" not in out
    assert "Traceback: one" in cli("jobs", ID, "--verbose").out


def waits_for_a_retry(lease: Any) -> Any:
    return retried(lease, 60.0, progress=Progress(0.5, "half way"))


@pytest.mark.parametrize(("last", "told"), [(waits_for_a_retry, "50% of the last run: half way"), (returns_half_way, "50%: half way")])
def test_progress_of_a_waiting_job_is_that_of_its_last_run(cli: Cli, last: Callable[[Any], Any], told: str) -> None:
    cli.with_broker(stored(last=last), Rules(crash_backoff=(0.0,)))
    assert f"progress         {told}\n" in cli("jobs", ID).out


@pytest.mark.parametrize("width", [80, 200])
def test_a_job_fits_the_terminal(cli: Cli, failed_job: None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the traceback keeps its lines."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    page, _ = cli("jobs", ID).out.split("\n\nattempt 2: ")
    longest = max(map(len, page.splitlines()))
    assert width - 20 < longest <= width


def test_json_has_the_same_without_secrets(cli: Cli, failed_job: None) -> None:
    [shown] = cli.json("jobs", ID)
    assert shown["arguments"] == {
        **ARGUMENTS,
        "card": {"number": "[hidden]", "owner": "Ada"},
        "api_key": "[hidden]",
        "url": "pg://u:[hidden]@h/x",
    }
    assert (shown["arguments_problem"], shown["result"], shown["result_problem"]) == (None, None, None)
    assert shown["headers"] == {"authorization": "[hidden]", "trace": "t-1"}
    assert [(error["ending"], error["worker"]) for error in shown["errors"]] == [
        ("crashed", "somewhere:0"),
        ("timed out", "somewhere:1"),
        ("failed", "somewhere:2"),
    ]
    assert all(error["started_at"] <= error["at"] for error in shown["errors"])
    assert shown["queue_wait"] >= 0
    assert "arguments" not in cli.jobs()[0]


def test_the_result_is_shown_without_secrets(cli: Cli) -> None:
    cli.with_broker(stored(last=returns_a_secret), Rules(crash_backoff=(0.0,)))
    out = cli("jobs", ID).out
    assert 'result           {"token": "[hidden]", "kind": "x"}\n' in out
    assert "arguments        not kept: the job has succeeded\n" in out
    assert re.search(r"^queue wait       \S+ from ready to start$", out, re.MULTILINE)
    assert cli.json("jobs", ID)[0]["result"] == {"token": "[hidden]", "kind": "x"}


def test_kept_arguments_are_shown_without_secrets(cli: Cli) -> None:
    cli.with_broker(stored(last=keeps_its_arguments), Rules(crash_backoff=(0.0,)))
    [shown] = cli.json("jobs", ID)
    assert shown["arguments"]["card"] == {"number": "[hidden]", "owner": "Ada"}
    assert (shown["status"], shown["result"]) == ("succeeded", {"token": "[hidden]", "kind": "x"})


def test_a_result_that_is_marked_is_hidden(cli: Cli) -> None:
    cli.with_broker(stored(last=returns_a_secret, secrets=("return",)), Rules(crash_backoff=(0.0,)))
    assert "result           [hidden]\n" in cli("jobs", ID).out
    assert cli.json("jobs", ID)[0]["result"] == "[hidden]"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "cannot be decoded: "), (b"\x01\xff", "cannot be decoded: "), (b"\x01\x00\x00\x01\x80", "none"),
        (encode_by_name({HOSTILE.replace("\ud800", ""): HOSTILE.replace("\ud800", "")}, job="", limits=Limits()), "all is well"),
        (encode_by_name({"many": ["x" * 1000] * 900}, job="", limits=Limits()), " characters]"),
        (encode_by_name({"many": ["x" * 1000] * 2000}, job="", limits=Limits(size=1 << 26)), "cannot be decoded: "),
    ],
    ids=["empty", "broken", "no arguments", "hostile", "long", "too large"],
)  # fmt: skip
def test_no_payload_breaks_the_page(cli: Cli, payload: bytes, told: str) -> None:
    async def add(broker: Broker) -> None:
        await broker.enqueue([Envelope(id=bytes(16), job="pay", payload=payload)])

    cli.with_broker(add)
    said = cli("jobs", ID)
    assert_safe(said.out)
    assert told in said.out
    assert len(said.out) < 5_000
    [shown] = cli.json("jobs", ID)
    assert (shown["arguments"] is None) == ("cannot" in told)
