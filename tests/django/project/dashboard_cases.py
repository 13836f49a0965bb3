"""The dashboard in a project: for members of staff, under WSGI and ASGI, beside the middleware of Django."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import AsyncClient, Client, TestCase
from django.urls import reverse

from taskflow import job, operate, run_sync
from taskflow.testing.jobs import jobs_in_memory

SAME = {"Sec-Fetch-Site": "same-origin"}
FORM = "application/x-www-form-urlencoded"


@job
def write_letter(to: str) -> str:
    return f"dear {to}"


class DashboardTests(TestCase):
    def setUp(self) -> None:
        self.enterContext(jobs_in_memory())
        self.client = Client(enforce_csrf_checks=True)

    def sign_in(self, name: str = "ada", *permissions: str, **fields: Any) -> None:
        user = User.objects.create_user(name, password="secret", **{"is_staff": True, **fields})
        user.user_permissions.set(Permission.objects.filter(content_type__app_label="taskflow", codename__in=permissions))
        self.client.force_login(user)

    def pause(self, headers: dict[str, str]) -> int:
        answer = self.client.post("/ops/jobs/queues/mail", "action=pause", content_type=FORM, headers=headers)
        return int(answer.status_code)

    def test_people_who_are_not_signed_in_are_sent_to_sign_in(self) -> None:
        answer = self.client.get("/ops/jobs/workers?x=1")
        assert (answer.status_code, answer["Location"]) == (302, "/accounts/login/?next=/ops/jobs/workers%3Fx%3D1")
        assert self.client.get("/ops/jobs/", headers={"X-Taskflow-Fragment": "1"}).status_code == 403
        assert self.pause(SAME) == 403

    def test_a_program_that_is_not_signed_in_is_refused(self) -> None:
        answer = self.client.get("/ops/jobs/api/v1/queues")
        assert (answer.status_code, answer.json()) == (403, {"error": "You may not see this dashboard."})

    def test_only_active_members_of_staff_may_look(self) -> None:
        for name, fields in (("eve", {"is_staff": False}), ("mallory", {"is_superuser": True, "is_staff": False})):
            self.sign_in(name, **fields)
            assert self.client.get("/ops/jobs/").status_code == 403
        self.sign_in("ada")
        page = self.client.get("/ops/jobs/")
        assert "ada (read-only)" in page.content.decode()
        assert page["Content-Type"] == "text/html; charset=utf-8"
        assert page["Content-Security-Policy"].endswith("frame-ancestors 'none'")
        assert self.pause(SAME) == 403

    def test_pages_link_below_the_prefix(self) -> None:
        self.sign_in()
        job = write_letter.delay_sync("grace").id
        assert reverse("taskflow-dashboard", args=["workers"]) == "/ops/jobs/workers"
        for path in ("", "jobs", f"jobs/{job}", "queues/default", "workers", "schedules", "charts", "audit", "api/v1/queues"):
            page = self.client.get(f"/ops/jobs/{path}")
            assert page.status_code == 200
            assert "api" in path or b'href="/ops/jobs/workers"' in page.content
        assert self.client.get("/ops/jobs/live").status_code == 404
        assert b"grace" not in self.client.get(f"/ops/jobs/jobs/{job}").content

    def test_permissions_allow_more(self) -> None:
        self.sign_in("ada", "act", "see_arguments")
        job = write_letter.delay_sync("grace").id
        assert b"grace" in self.client.get(f"/ops/jobs/jobs/{job}").content
        for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil"}):
            assert self.pause(headers) == 403
        assert self.pause(SAME) == 303
        assert self.pause({"Origin": "https://testserver", "Host": "testserver"}) == 303
        [record] = self.client.get("/ops/jobs/api/v1/audit").json()
        assert (record["action"]["by"], record["action"]["kind"]) == ("ada", "pause")
        assert [queue.is_paused for queue in run_sync(operate.queues()) if queue.name == "mail"] == [True]

    def test_superusers_may_do_everything(self) -> None:
        self.sign_in("root", is_superuser=True)
        assert self.pause(SAME) == 303

    def test_a_page_is_sent_again_only_after_a_change(self) -> None:
        self.sign_in()
        headers = {"X-Taskflow-Fragment": "1"}
        first = self.client.get("/ops/jobs/", headers=headers)
        again = self.client.get("/ops/jobs/", headers={**headers, "If-None-Match": first["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


class AsyncTests(TestCase):
    async def test_it_answers_under_asgi(self) -> None:
        user = await User.objects.acreate_user("ada", is_staff=True, is_superuser=True)
        with jobs_in_memory():
            client = AsyncClient(enforce_csrf_checks=True)
            await client.aforce_login(user)
            assert b"No worker is running" in (await client.get("/ops/jobs/")).content
            answer = await client.post(
                "/ops/jobs/queues/mail", "action=pause", content_type=FORM, headers={"Sec-Fetch-Site": "same-origin"}
            )
            assert answer.status_code == 303
            assert [queue.is_paused for queue in await operate.queues()] == [True]
