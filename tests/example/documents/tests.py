"""The application's own tests, which Django's runner runs: see test_documents.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import ANY

from django.conf import settings
from django.db import transaction
from django.test import TestCase, TransactionTestCase

from taskflow import run_sync
from taskflow.testing.jobs import jobs_in_memory

from .models import Document, Member, Tenant
from .tasks import consume, reindex


class DocumentsTestCase(TransactionTestCase):
    def setUp(self) -> None:
        Member.objects.create(name="ada", tenant=Tenant.objects.create(name="acme"))
        self.folder = Path(self.enterContext(TemporaryDirectory()))

    def post(self, path: str, **data: str) -> Any:
        answer = self.client.post(path, data, headers={"X-Member": "ada"})
        assert answer.status_code in (200, 201), answer.content
        return answer.json()

    def create(self, **data: str) -> int:
        return int(self.post("/documents", title="a letter", **data)["id"])

    def found(self, pk: int) -> Any:
        return self.client.get(f"/documents/{pk}").json()

    def file(self, content: bytes) -> str:
        file = self.folder / "scan.txt"
        file.write_bytes(content)
        return str(file)


class InlineTests(DocumentsTestCase, TestCase):
    """Jobs run where they are sent: in the transaction of the test, which is rolled back."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs = self.enterContext(jobs_in_memory())
        self.enterContext(self.jobs.inline(raises=False))

    def test_a_job_sees_the_row_that_was_not_committed(self) -> None:
        pk = self.create(text="to be or not to be")
        assert self.found(pk)["words"] == ["be", "not", "or", "to"]

    def test_a_job_runs_for_the_tenant_of_the_member_who_sent_it(self) -> None:
        assert self.found(self.create(text="mine"))["tenant"] == "acme"

    def test_a_job_that_another_job_sends_belongs_to_the_same_tenant(self) -> None:
        pk = self.create(file=self.file(b"scanned text"))
        assert self.found(pk) == {"words": ["scanned", "text"], "tenant": "acme", "problem": ""}

    def test_a_file_that_cannot_be_read_is_noted(self) -> None:
        pk = self.create(file=self.file(b"\xff"))
        assert self.found(pk)["problem"] == "the file cannot be read"

    def test_what_is_rolled_back_takes_the_writes_of_its_jobs_with_it(self) -> None:
        pk = self.create(text="kept")
        with transaction.atomic():
            self.post(f"/documents/{pk}", text="undone")
            transaction.set_rollback(True)
        assert self.found(pk)["words"] == ["kept"]

    async def test_a_plain_function_that_a_coroutine_sends_sees_the_row_too(self) -> None:
        document = await Document.objects.acreate(title="a letter", text="to be")
        assert await (await reindex.delay(document.pk)).result(timeout=0) == 2


class SentTests(DocumentsTestCase, TestCase):
    """Jobs wait in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs = self.enterContext(jobs_in_memory())

    def test_several_saves_send_one_job(self) -> None:
        pk = self.create(text="first")
        for text in ("second", "third"):
            self.post(f"/documents/{pk}", text=text)
        self.create(text="another document")
        self.jobs.assert_enqueued(reindex, pk, queue="documents", key=str(pk), count=1)
        self.jobs.assert_enqueued(reindex, ANY, count=2)

    def test_a_file_is_consumed_by_a_job(self) -> None:
        self.create(file=self.file(b"text"))
        self.jobs.assert_enqueued(consume, ANY, self.folder / "scan.txt")


class WorkerTests(DocumentsTestCase):
    """Jobs run in a worker's process, on the file of the application."""

    def setUp(self) -> None:
        super().setUp()
        self.taskflow("migrate", "--broker", f"sqlite:///{settings.DATABASE}?shared=1")

    def taskflow(self, *arguments: str, code: int = 0) -> None:
        ran = subprocess.run([sys.executable, "-m", "taskflow", *arguments], capture_output=True, text=True, timeout=60)
        assert ran.returncode == code, ran.stderr

    def test_a_worker_indexes_what_was_committed(self) -> None:
        pk = self.create(text="first")
        self.post(f"/documents/{pk}", text="second")
        with transaction.atomic():
            undone = Document.objects.create(title="undone")
            transaction.set_rollback(True)
        assert run_sync(reindex.live(str(undone.pk))) is None
        self.taskflow("worker", "tests.example.documents.worker", "--drain")
        assert self.found(pk) == {"words": ["second"], "tenant": "acme", "problem": ""}

    def test_a_worker_notes_a_file_that_cannot_be_read(self) -> None:
        pk = self.create(file=self.file(b"\xff"))
        self.taskflow("worker", "tests.example.documents.worker", "--drain", code=1)
        assert self.found(pk)["problem"] == "the file cannot be read"
