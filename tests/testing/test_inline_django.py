"""Inline jobs in the tests of a Django project, which `manage.py test` runs with unittest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = """
SECRET_KEY = "test"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "unused.db"}}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
"""

MODELS = """
from django.db import models


class Order(models.Model):
    state = models.TextField()
"""

TASKS = """
import asyncio

from django.db import IntegrityError, transaction
from shop.models import Order
from taskflow import job, run_sync


@job(name="pay", max_attempts=3)
def pay(order_id: int) -> str:
    order = Order.objects.get(id=order_id)
    order.state += " paid"
    order.save()
    ship.delay_sync(order_id)
    return order.state


@job(name="ship")
def ship(order_id: int) -> None:
    Order.objects.filter(id=order_id).update(state="shipped")


@job(name="pay_async")
async def pay_async(order_id: int) -> str:
    order = await Order.objects.aget(id=order_id)
    await (await pay.delay(order_id)).result(timeout=0)
    return order.state


@job(name="collide", max_attempts=1)
def collide(order_id: int) -> None:
    with transaction.atomic():
        Order.objects.create(id=order_id, state="again")
"""

TESTS = """
import asyncio
import unittest

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from shop.models import Order
from shop.tasks import collide, pay, pay_async
from taskflow import JobFailed, enqueue, enqueue_sync, run_sync
from taskflow.testing.jobs import jobs_in_memory


class InlineJobs:
    def setUp(self):
        self.jobs = self.enterContext(jobs_in_memory())
        self.enterContext(self.jobs.inline())


class InTheTestsTransaction(InlineJobs, TestCase):
    def test_1_a_job_sees_rows_that_are_not_committed(self):
        order = Order.objects.create(state="new")
        handle = pay.delay_sync(order.id)
        self.assertEqual(run_sync(handle.result(timeout=0)), "new paid")
        order.refresh_from_db()
        self.assertEqual(order.state, "shipped")
        assert connection.in_atomic_block

    def test_2_its_writes_were_rolled_back_with_the_test(self):
        self.assertEqual(Order.objects.count(), 0)

    def test_many_and_in_a_transaction(self):
        orders = [Order.objects.create(state="new") for _ in range(3)]
        enqueue_sync(pay.bind(order.id) for order in orders)
        with transaction.atomic():
            enqueue_sync([pay.bind(orders[0].id)], connection=connection)
        self.assertEqual({order.state for order in Order.objects.all()}, {"shipped"})

    def test_what_is_rolled_back_takes_the_jobs_writes_with_it(self):
        order = Order.objects.create(state="new")
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            pay.delay_sync(order.id)
            1 / 0
        order.refresh_from_db()
        self.assertEqual(order.state, "new")

    def test_on_commit(self):
        order = Order.objects.create(state="new")
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: pay.delay_sync(order.id))
        order.refresh_from_db()
        self.assertEqual(order.state, "shipped")

    def test_a_job_that_fails_does_not_break_the_transaction(self):
        order = Order.objects.create(state="new")
        with self.assertRaises(JobFailed), self.jobs.inline():
            collide.delay_sync(order.id)
        self.assertEqual(Order.objects.count(), 1)

    async def test_a_plain_function_that_a_coroutine_sends_sees_them_too(self):
        order = await Order.objects.acreate(state="new")
        handle = await pay.delay(order.id)
        self.assertEqual(await handle.result(timeout=0), "new paid")
        await enqueue([pay.bind(order.id)])
        await sync_to_async(pay.delay_sync)(order.id)
        await order.arefresh_from_db()
        self.assertEqual(order.state, "shipped")

    async def test_an_async_job_of_a_coroutine_sees_them_too(self):
        order = await Order.objects.acreate(state="new")
        self.assertEqual(await (await pay_async.delay(order.id)).result(timeout=0), "new")
        await order.arefresh_from_db()
        self.assertEqual(order.state, "shipped")


class WithoutATransaction(InlineJobs, TransactionTestCase):
    def test_it_commits_as_the_sender_would(self):
        order = Order.objects.create(state="new")
        pay.delay_sync(order.id)
        order.refresh_from_db()
        self.assertEqual(order.state, "shipped")


class WithoutADatabase(unittest.TestCase):
    def test_jobs_wait_without_inline(self):
        with jobs_in_memory() as jobs:
            pay.delay_sync(1)
            jobs.assert_enqueued(pay, 1)
"""


def test_a_job_shares_the_transaction_of_djangos_test_case(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    for name, text in {"__init__": "", "models": MODELS, "tasks": TASKS, "tests": TESTS}.items():
        shop.mkdir(exist_ok=True)
        (shop / f"{name}.py").write_text(text)
    (tmp_path / "project.py").write_text(SETTINGS)
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "django", "test", "--settings", "project", "--pythonpath", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ran 10 tests" in done.stderr
