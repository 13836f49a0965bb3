"""`taskflow dashboard`: one browser, by a token that works once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.url import connect
from tests.dashboard.site import Page


@pytest.fixture
async def store(tmp_path: Path) -> str:
    """Return the URL of a store that exists."""
    url = f"sqlite:///{tmp_path}/queue.db"
    broker = connect(url)
    assert isinstance(broker, SqliteBroker)
    await broker.admin.pause("mail")
    await broker.close()
    return url


class Server:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "taskflow", "dashboard", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@pytest.fixture
def server(store: str) -> Iterator[Server]:
    server = Server("--broker", store)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def test_the_token_opens_it_once(server: Server) -> None:
    address = urlsplit(server.url)
    assert (address.scheme, address.hostname, address.path) == ("http", "127.0.0.1", "/")
    base = f"http://127.0.0.1:{address.port}"
    for without in ("/", "/jobs", "/style.css", "/?token=", "/?token=nonsense", "/?token=%ff"):
        assert httpx.get(base + without).status_code == 403
    assert httpx.head(server.url).status_code == 403  # a preview of links does not use it up
    with httpx.Client() as browser:
        first = browser.get(server.url)
        assert (first.status_code, first.headers["location"], first.headers["cache-control"]) == (303, "/", "no-store")
        assert "Overview" in browser.get(f"{base}/").text
        [cookie] = first.headers.get_list("set-cookie")
        assert cookie.startswith(f"taskflow_dashboard_{address.port}=")
        assert cookie.endswith("; HttpOnly; Path=/; SameSite=lax")
        again = httpx.get(server.url)
        assert again.status_code == 403
        assert "This URL has been used: start `taskflow dashboard` again." in Page(again).text
        assert browser.get(f"{base}/workers").status_code == 200
        assert browser.get(server.url).status_code == 200  # a reload
        assert "set-cookie" not in browser.get(f"{base}/").headers
        assert browser.post(f"{base}/queues/mail", data={"action": "resume"}).status_code == 403
        resumed = browser.post(f"{base}/queues/mail", data={"action": "resume"}, headers={"Sec-Fetch-Site": "same-origin"})
        assert resumed.status_code == 303
        by = Page(browser.get(f"{base}/audit")).text
        assert "resume 1 mail" in by
        assert "@" in by
    forged = {cookie.partition("=")[0]: "nonsense"}
    assert httpx.get(f"{base}/", cookies=forged).status_code == 403


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(server: Server, number: signal.Signals) -> None:
    """This also holds while a page is live."""
    with httpx.Client() as browser:
        browser.get(server.url)
        with browser.stream("GET", f"{server.url.partition('?')[0]}live") as stream:
            assert next(stream.iter_text()).startswith("retry: ")
            assert server.end(number) == (128 + number, "")


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys\n{before}\nfrom taskflow.cli.main import main\nsys.exit(main(['dashboard', *sys.argv[1:]]))"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)


def test_it_listens_where_it_is_asked_to(store: str) -> None:
    server = Server("--broker", store, "--host", "0.0.0.0", "--port", "0")
    try:
        address = urlsplit(server.url)
        assert address.hostname == "0.0.0.0"
        assert httpx.get(server.url.replace("0.0.0.0", "127.0.0.1")).status_code == 303
        taken = run("--broker", store, "--port", str(address.port), "--host", "0.0.0.0")
    finally:
        _, err = server.end()
    assert "not encrypted" in err
    assert taken.returncode == 2
    assert taken.stderr.startswith("taskflow: --port: cannot listen on '0.0.0.0', port ")


def test_a_store_that_does_not_exist_is_said_at_once(tmp_path: Path) -> None:
    ran = run("--broker", f"sqlite:///{tmp_path}/none.db")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "does not exist" in ran.stderr
    assert not os.path.exists(tmp_path / "none.db")


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "jinja2", "markupsafe"])
def test_a_missing_extra_is_named(store: str, missing: str) -> None:
    ran = run("--broker", store, before=f"sys.modules['{missing}'] = None")
    assert ran.returncode == 2, ran.stderr
    assert "install the extra 'dashboard'" in ran.stderr
    assert missing in ran.stderr
