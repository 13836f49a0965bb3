"""The example, driven as its users would: HTTP in, mails out, on both frameworks."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.processes import TIMEOUT, Running, Shell
from tests.example.post import PostOffice

FOLDER = Path(__file__).parent
DELAY = 0.2
# As the job declares them: 0.25 s after the first failure, then three times as long.
FIRST_WAIT, SECOND_WAIT = 0.25, 0.75


class Service:
    """The application in a process of its own, served by uvicorn."""

    def __init__(self, running: Running, url: str, http: httpx.Client) -> None:
        self.running = running
        self._url = url
        self._http = http

    def register(self, email: str) -> str:
        answer = self.post({"email": email})
        assert answer.status_code == 202, answer.text
        assert answer.json()["app"] == "example", "the state of the application's own lifespan is passed on"
        return str(answer.json()["job_id"])

    def post(self, body: Any) -> httpx.Response:
        return self._http.post(f"{self._url}/register", json=body)

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self._http.get(f"{self._url}/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job's progress once it has ended: the mail is accepted a moment before."""
        give_up_at = time.monotonic() + TIMEOUT
        while (found := self.job(job_id))["status"] in ("ready", "running", "scheduled"):
            assert time.monotonic() < give_up_at, f"it does not end: {found}"
        return found

    def stop(self) -> None:
        self.running.signal(signal.SIGTERM)
        self.ended_well()

    def ended_well(self) -> None:
        """After its shutdown uvicorn raises the signal once more, for whoever started it to see."""
        assert self.running.end() == -signal.SIGTERM, self.running.said
        assert "Application shutdown complete" in self.running.said
        assert "Traceback" not in self.running.said


@pytest.fixture
def post_office() -> Iterator[PostOffice]:
    with PostOffice() as opened:
        yield opened


@pytest.fixture(params=["starlette_app", "fastapi_app"])
def service(request: pytest.FixtureRequest, tmp_path: Path, post_office: PostOffice) -> Iterator[Service]:
    with Shell(FOLDER) as shell:
        shell.environment |= {
            "TASKFLOW_BROKER": f"sqlite:///{tmp_path}/queue.db",
            "SMTP_PORT": str(post_office.port),
            "WELCOME_DELAY": str(DELAY),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        running = shell.start("-m", "uvicorn", f"app.{request.param}:app", "--port", "0", "--lifespan", "on")
        running.wait_for("Uvicorn running on")
        found = re.search(r"Uvicorn running on (http://[\d.:]+)", running.said)
        assert found is not None
        with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=20)) as http:
            yield Service(running, found[1], http)


def test_a_registration_is_answered_at_once_and_the_mail_comes_later(service: Service, post_office: PostOffice) -> None:
    """While the mail server keeps everybody waiting, the answer does not. The mail names job and attempt."""
    post_office.open.clear()
    job_id = service.register("ada@example.com")
    assert post_office.to("ada@example.com") == []
    assert service.job(job_id)["max_attempts"] == 5
    assert post_office.is_asked.wait(60)
    assert service.job(job_id)["status"] == "running"
    post_office.open.set()
    [mail] = post_office.wait_for("ada@example.com")
    assert mail["Message-ID"] == f"<{job_id}@example.com>"
    assert mail["X-Attempt"] == "1"
    assert "this is attempt 1 of 5" in mail.get_payload()
    assert service.ended(job_id) == {
        "status": "succeeded",
        "attempt": 1,
        "max_attempts": 5,
        "waited": pytest.approx(DELAY, abs=0.001),
        "errors": [],
        "result": "ada@example.com has been welcomed",
    }
    post_office.wait_for("staff@example.com")


def test_a_busy_mail_server_is_tried_again_with_exponential_back_off(service: Service, post_office: PostOffice) -> None:
    """The first two deliveries are refused. No attempt is early: the second wait is three times the first."""
    post_office.refusals = 2
    job_id = service.register("grace@example.com")
    [mail] = post_office.wait_for("grace@example.com")
    assert mail["X-Attempt"] == "3"
    first, second, third = post_office.tried_at["grace@example.com"]
    assert second - first >= FIRST_WAIT
    assert third - second >= SECOND_WAIT
    job = service.ended(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 3)
    assert len(job["errors"]) == 2
    for error in job["errors"]:
        assert error.startswith("aiosmtplib.errors.SMTPDataError: ")
        assert "too busy" in error


def test_everybody_who_registers_is_welcomed_once(service: Service, post_office: PostOffice) -> None:
    addresses = [f"user{n}@example.com" for n in range(100)]
    with ThreadPoolExecutor(10) as pool:
        ids = list(pool.map(service.register, addresses))
    assert len(set(ids)) == len(addresses)
    for address in addresses:
        [mail] = post_office.wait_for(address)
        assert mail["X-Attempt"] == "1"
    post_office.wait_for("staff@example.com", len(addresses))
    service.stop()
    assert len(post_office.mails) == 2 * len(addresses)


def test_a_registration_without_an_address_sends_nothing(service: Service, post_office: PostOffice) -> None:
    assert service.post({}).status_code == 422
    service.stop()
    assert post_office.mails == []


def test_stopping_lets_a_mail_that_is_under_way_be_sent(service: Service, post_office: PostOffice) -> None:
    """The worker winds down before the application's own lifespan closes what jobs use."""
    post_office.open.clear()
    service.register("joan@example.com")
    assert post_office.is_asked.wait(60)
    service.running.signal(signal.SIGTERM)
    service.running.wait_for("Waiting for application shutdown")
    assert "the application has closed" not in service.running.said
    post_office.open.set()
    service.ended_well()
    assert len(post_office.to("joan@example.com")) == 1
    assert "the application has closed" in service.running.said


def test_what_is_not_due_when_it_stops_is_sent_by_whoever_works_next(tmp_path: Path, post_office: PostOffice) -> None:
    """The queue is a file: an ordinary worker of the same jobs takes it up."""
    shell = Shell(FOLDER)
    shell.environment |= {
        "TASKFLOW_BROKER": f"sqlite:///{tmp_path}/queue.db",
        "SMTP_PORT": str(post_office.port),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    shell.run("-c", "from app.tasks import *; send_welcome_email.delay_sync(WelcomeEmail('user_123', 'mary@example.com'))")
    shell.run("-m", "taskflow", "worker", "app.tasks", "--drain")
    assert len(post_office.to("mary@example.com")) == 1
