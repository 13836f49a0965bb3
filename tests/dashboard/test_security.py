"""The dashboard is closed by default, accepts writes only from its own pages, and shows stored text as text."""

from __future__ import annotations

import tomllib
import unicodedata
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from taskflow.app.app import default_app
from taskflow.dashboard import Access, dashboard
from taskflow.dashboard.guard import Authorize, _as_mounted
from taskflow.dashboard.rendering import FILES, VENDOR, path_of
from taskflow.model.ids import id_text
from tests.dashboard.hostile import TEXTS, HostileStore
from tests.dashboard.site import ADA, PREFIX, Page, Site
from tests.support.world import World

PAGES = (
    "/",
    "/jobs",
    "/jobs?status=failed",
    "/failures",
    "/workers",
    "/schedules",
    "/charts",
    "/charts?hours=24",
    "/audit",
    "/schedules/calendar",
)
WRITES = ("/act", "/act/x/stop", "/queues/mail", "/schedules")


@pytest.mark.parametrize("path", [*PAGES, f"/jobs/{id_text(bytes(16))}", "/queues/mail", "/act", "/style.css", "/nothing"])
async def test_without_authorize_every_page_is_closed(memory: World, path: str) -> None:
    async with Site(authorize=None) as site:
        page = await site.get(path, code=403)
    assert "dashboard(authorize=...)" in page.text
    assert "nav" not in dict(page.tags)


async def refuses(request: Request) -> Access | None:
    return ADA if request.headers.get("x-user") == "ada" else None


async def test_authorize_may_read_the_form(memory: World) -> None:
    """The requested page can read it too."""

    async def reads(request: Request) -> Access:
        return Access("ada", actions=await request.body() == b"action=pause")

    async with Site(reads) as site:
        await site.post("/queues/mail", action="pause")
        await site.post("/queues/mail", code=403, action="resume")
    assert [queue.is_paused for queue in await memory.broker.admin.queues()] == [True]


async def test_a_client_that_goes_while_it_sends_a_form_is_no_error(memory: World) -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"action=", "more_body": True}, {"type": "http.disconnect"}]
    sent = list[Message]()

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"sec-fetch-site", b"same-origin"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/queues/mail", "query_string": b"", "headers": headers}
    await dashboard(authorize=lambda request: ADA)(scope, receive, send)
    assert sent[0]["status"] == 400
    assert await memory.broker.admin.queues() == []


class Asks:
    """An authorizer that is an object."""

    async def __call__(self, request: Request) -> Access | None:
        return await refuses(request)


@pytest.mark.parametrize("authorize", [refuses, Asks(), lambda request: ADA if request.headers.get("x-user") == "ada" else None])
async def test_authorize_is_asked_for_each_request(memory: World, authorize: Authorize) -> None:
    async with Site(authorize) as site:
        await site.get("/", code=403)
        await site.post("/queues/mail", code=403, action="pause")
        site.client.headers["x-user"] = "ada"
        await site.get("/")
        await site.post("/queues/mail", action="pause")


@pytest.mark.parametrize("answer", [True, "ada", 1])
async def test_an_answer_that_is_no_access_opens_nothing(memory: World, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with Site(lambda request: answer) as site:
        await site.get("/", code=500)
    assert "expected an Access, or None to refuse" in caplog.text


async def test_an_authorize_that_fails_opens_nothing(memory: World, caplog: pytest.LogCaptureFixture) -> None:
    """The page does not show the error, which may contain a secret. The log does."""

    async def fails(request: Request) -> Access:
        raise ConnectionError("no answer from ldap://secret@host")

    async with Site(fails) as site:
        page = await site.get("/", code=500)
        assert "secret" not in page.answer.text
        assert page.answer.headers["content-security-policy"].startswith("style-src 'self'")
        assert "nav" not in dict(page.tags)
        failed = await site.get("/api/v1/queues", code=500)
        assert set(failed.answer.json()) == {"error"}
    assert "ldap://secret@host" in caplog.text


async def test_authorize_may_raise_an_answer(memory: World) -> None:
    """Sign-in checks in Starlette and FastAPI do so."""

    def sign_in(request: Request) -> Access:
        raise HTTPException(303, "Sign in first.", {"Location": "/sign-in"})

    async with Site(sign_in) as site:
        page = await site.get("/", code=303)
        assert (page.answer.headers["location"], "Sign in first." in page.text) == ("/sign-in", True)


@pytest.mark.parametrize("actor", ["", None, 7])
def test_an_access_names_a_person(actor: Any) -> None:
    with pytest.raises(TypeError, match="expected a user's name, as a str"):
        Access(actor)


OTHER_SITES: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://host"},
    {"Origin": "null"},
    {"Origin": "http://host.evil"},
    {"Origin": "http://host:81"},
    {"Origin": "http://evil/host"},
    {"Origin": "http://[host"},
    {"Referer": "http://host/"},
    {"Host": "", "Origin": "null"},
    {"Host": ""},
]


@pytest.mark.parametrize("headers", OTHER_SITES, ids=str)
@pytest.mark.parametrize("path", WRITES)
async def test_a_write_of_another_site_is_refused(memory: World, site: Site, path: str, headers: dict[str, str]) -> None:
    page = await site.post(path, code=403, headers=headers, action="pause")
    assert "does not come from a page of the dashboard" in page.text
    assert await memory.broker.admin.queues() == []


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "https://host"}, {"Origin": "http://HOST"}], ids=str)
async def test_a_write_of_the_dashboards_own_pages_is_taken(memory: World, site: Site, headers: dict[str, str]) -> None:
    await site.post("/queues/mail", headers=headers, action="pause")
    assert [queue.is_paused for queue in await memory.broker.admin.queues()] == [True]


@pytest.mark.parametrize("path", WRITES)
async def test_a_person_who_may_only_look_cannot_act(memory: World, path: str) -> None:
    """The pages do not offer actions either."""
    failed = await memory.add(queue="mail")
    async with Site(lambda request: Access("eve")) as site:
        page = await site.post(path, code=403, action="pause", id=id_text(failed.id))
        assert "not change anything" in page.text
        await site.get("/act", code=403, action="retry", id=id_text(failed.id))
        for shown in ("/jobs", f"/jobs/{id_text(failed.id)}", "/queues/mail", "/failures", "/schedules"):
            page = await site.get(shown)
            assert page.all("form", method="post") == [] or page.all("button", name="action") == []
            assert [link for link in page.links if "/act" in link] == []


async def test_only_forms_of_a_limited_size_are_read(memory: World, site: Site) -> None:
    await site.post("/act", code=413, action="retry", id="x" * 70_000)
    answer = await site.client.post(f"{PREFIX}/act", json={"action": "retry"}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 415
    answer = await site.client.post(
        f"{PREFIX}/act",
        content=b"&".join([b"id=1"] * 2_000),
        headers={"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 400
    for method in ("PUT", "DELETE", "PATCH"):
        assert (await site.client.request(method, f"{PREFIX}/jobs", headers={"Sec-Fetch-Site": "same-origin"})).status_code == 405


@pytest.mark.parametrize(
    ("path", "code"), [*((path, 200) for path in PAGES), ("/nothing", 404), ("/jobs?status=odd", 400), ("/style.css", 200)]
)
async def test_every_answer_keeps_a_browser_safe(memory: World, site: Site, path: str, code: int) -> None:
    headers = (await site.get(path, code=code)).answer.headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == ("no-store" if path != "/style.css" else "private, max-age=31536000, immutable")


# --- hostile text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", TEXTS)
async def test_hostile_text_is_shown_as_text(form: str) -> None:
    """On every page that has any, no tag, attribute or link comes from it, and no control character."""
    store = HostileStore(TEXTS[form])
    with default_app().using(store):  # type: ignore[arg-type]  # it has what the dashboard asks for  # pyright: ignore[reportArgumentType]
        async with Site(lambda request: Access(TEXTS[form], actions=True, show_arguments=True)) as site:
            jobs = [f"/jobs/{record.id.hex()}" for record in store.records if len(record.id) == 16]
            sent = TEXTS[form].replace("\ud800", "?")  # no client can send a lone surrogate
            pages = [await site.get(path) for path in [*PAGES, *jobs]]
            pages += [
                await site.get("/charts", queue=sent, job=sent),
                await site.get(path_of("queues", sent), 200 if sent == TEXTS[form] else 404),
            ]
            pages += [await site.get("/jobs", code=400, queue=sent), await site.get("/jobs", error=sent)]
            pages += [await site.get("/act", action="retry", error=sent), await site.post("/act", action="retry", error=sent)]
    for page in pages:
        assert_harmless(page)


def assert_harmless(page: Page) -> None:
    assert not [c for c in page.answer.text.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert {tag for tag, _ in page.tags} & {"img", "iframe", "style", "textarea", "object"} == set()
    assert {script["src"].partition("?")[0] for script in page.all("script")} <= {f"{PREFIX}/{name}" for name in FILES}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("href", "action", "formaction", "src"):
            assert urlsplit(attributes.get(name, "")).scheme == ""
            assert attributes.get(name, PREFIX).startswith((PREFIX, "#"))


def test_a_path_with_unusual_bytes_is_read_below_litestar() -> None:
    scope = _as_mounted({"litestar_app": None, "raw_path": b"/jobs/\xff", "path": "/\xff/"})
    assert scope["path"].startswith("/jobs/")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".css")])
def test_a_stylesheet_loads_nothing(name: str) -> None:
    assert b"url(" not in FILES[name]
    assert b"@import" not in FILES[name]


def test_the_files_of_other_projects_are_as_released_and_licensed() -> None:
    """vendor.toml says where each comes from."""
    listed = tomllib.loads((VENDOR / "vendor.toml").read_text())
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir() if path.name != "vendor.toml"}
    assert digests == {name: digest for each in listed.values() for name, digest in each["files"].items()}
    for project, each in listed.items():
        assert f"{project}.LICENSE" in each["files"]
        assert {"version", "license", "source"} <= each.keys()


async def test_a_queue_with_a_name_of_dots_has_a_link_that_works(memory: World, site: Site) -> None:
    """A browser would remove such a segment of a path."""
    await memory.add(queue="..")
    await memory.add(queue="a/../b:c")
    links = (await site.get("/")).links
    assert f"{PREFIX}/jobs?queue=.." in links
    assert f"{PREFIX}/queues/a%2F..%2Fb%3Ac" in links
    assert "a/../b:c" in (await site.get(f"{PREFIX}/queues/a%2F..%2Fb%3Ac")).text
