"""`manage.py taskflow`, and the errors of workers if Django is not set up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

from tests.docs.pages import ROOT, blocks, files_of, write

HAS_TASKS_OF_DJANGO = find_spec("django.tasks") is not None
PAGE = ROOT / "docs/how-to/use-with-django.md"

MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
INSTALLED_APPS = ["taskflow.django", "shop"]
USE_TZ = True
"""
MODELS = """
from django.db import models
class Order(models.Model):
    cents = models.IntegerField()
"""
TASKS = """
from shop.models import Order
from taskflow import job

@job
def count(of: str) -> str:
    return f"{of}: {Order._meta.label}"

@job(runs_in="process")
def crunch(n: int) -> str:
    return f"{n}: {Order._meta.label}"
"""

APPS = """
from django.apps import AppConfig
from taskflow import configure

class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        configure(broker="sqlite:///other.db")
"""

URLS = """
from django.urls import path
from shop.views import create_order, show_task
urlpatterns = [path("orders", create_order), path("tasks/<task_id>", show_task)]
"""


class Project:
    """A project in a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop").mkdir()
        (folder / "manage.py").write_text(MANAGE)
        self.write(__init__="", settings=SETTINGS, models=MODELS, tasks=TASKS)

    def write(self, **sources: str) -> None:
        for name, source in sources.items():
            (self.folder / "shop" / f"{name}.py").write_text(source)

    def __call__(self, *command: str, code: int = 0, **environment: str) -> str:
        whole = os.environ | {"TASKFLOW_BROKER": f"sqlite:///{self.folder}/jobs.db"} | environment
        ran = subprocess.run([sys.executable, *command], cwd=self.folder, env=whole, capture_output=True, text=True, timeout=60)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def manage(self, *arguments: str, code: int = 0) -> str:
        return self("manage.py", "taskflow", *arguments, code=code)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_commands_know_the_jobs_of_all_apps(project: Project) -> None:
    job_id = project.manage("send", "shop.tasks.count", "--args", '{"of": "ada"}').strip()
    assert "unknown" in project.manage("send", "shop.tasks.count", "--args", '{"unknown": "ada"}', code=2)
    assert 'of  "ada"' in project.manage("jobs", job_id)
    assert "all 1 jobs would run with this code" in project.manage("check")
    said = project.manage("worker", "--drain")
    assert "modules: taskflow.django.setup, shop.tasks; 2 jobs" in said
    assert "ada: shop.Order" in project.manage("jobs", job_id, "--settings", "shop.settings")


def test_supervised_workers_and_child_processes_set_django_up(project: Project) -> None:
    job_id = project.manage("send", "shop.tasks.crunch", "--args", '{"n": 7}').strip()
    (project.folder / "manage.py").write_text(MANAGE.replace("shop.settings", "missing"))
    project.manage("worker", "shop.tasks", "--drain", "--processes", "1", "--settings", "shop.settings")
    assert "7: shop.Order" in project.manage("jobs", job_id, "--settings=shop.settings")


def test_a_worker_without_django_says_what_to_do(project: Project) -> None:
    what_to_do = 'taskflow: Django is not set up: add "taskflow.django" to INSTALLED_APPS and run `python manage.py taskflow worker`'
    for settings in ({}, {"DJANGO_SETTINGS_MODULE": "shop.settings"}):
        assert what_to_do in project("-m", "taskflow", "worker", "shop.tasks", code=2, **settings)
    said = project("-m", "taskflow", "worker", "taskflow.django.setup", "shop.tasks", "--drain", DJANGO_SETTINGS_MODULE="shop.settings")
    assert "2 jobs" in said


def test_the_error_for_a_project_without_tasks_asks_for_modules(project: Project) -> None:
    (project.folder / "shop" / "tasks.py").unlink()
    assert "name the modules that declare jobs" in project.manage("worker", code=2)


def test_a_task_that_cannot_join_is_refused_at_the_start(project: Project) -> None:
    backend = 'TASKS = {"default": {"BACKEND": "taskflow.django.TaskflowBackend", "OPTIONS": {"transaction": "join"}}}'
    project.write(settings=f"{SETTINGS}{backend}\n")
    said = project("-c", "import django; django.setup()", code=1, DJANGO_SETTINGS_MODULE="shop.settings")
    assert 'jobs.db is not in the database "default", which is shop.db' in said
    said = project("-c", "import django; django.setup()", code=1, DJANGO_SETTINGS_MODULE="shop.settings", TASKFLOW_BROKER="")
    assert 'has "transaction": "join", but no broker is configured. Add "broker"' in said


def test_the_system_check_finds_a_broker_that_a_later_app_configures(project: Project) -> None:
    backend = 'TASKS = {"default": {"BACKEND": "taskflow.django.TaskflowBackend", "OPTIONS": {"transaction": "join"}}}'
    apps = '"shop.apps.ShopConfig"]' if HAS_TASKS_OF_DJANGO else '"shop.apps.ShopConfig", "django_tasks"]'
    project.write(settings=SETTINGS.replace('"shop"]', apps) + backend, apps=APPS)
    said = project("manage.py", "check", code=1, TASKFLOW_BROKER=f"sqlite:///{project.folder}/shop.db?shared=1")
    assert "(taskflow.E002)" in said
    assert 'other.db is not in the database "default", which is shop.db' in said


def test_the_project_of_the_page_works(project: Project) -> None:
    for block in blocks(PAGE, "python"):
        text = block.text
        if not HAS_TASKS_OF_DJANGO:
            text = text.replace("django.tasks", "django_tasks").replace('["taskflow.django",', '["taskflow.django", "django_tasks",')
        project.write(**{text.splitlines()[0].removeprefix("# shop/").removesuffix(".py"): text})
    project.write(urls=URLS)
    assert "Ran 2 tests" in project("manage.py", "test", "shop")
    pytest_django = ("pytest", "-p", "pytest_django", "-p", "no:cacheprovider", "-q", "shop/test_orders.py")
    assert "1 passed" in project("-m", *pytest_django, DJANGO_SETTINGS_MODULE="shop.settings")
    script = """
        from django.core.management import call_command
        from django.test import Client
        call_command("migrate", run_syncdb=True, verbosity=0)
        task = Client().post("/orders", {"cents": 500}).json()["task"]
        try:
            call_command("taskflow", "worker", "--drain")
        finally:
            print(Client().get(f"/tasks/{task}").json())
    """
    said = project("manage.py", "shell", "--command", dedent(script))
    assert "{'status': 'SUCCESSFUL', 'attempts': 1}" in said


def test_the_application_of_the_page_about_celery_works(project: Project) -> None:
    """Its order is sent with its receipt or not at all, and its schedules fire."""
    page = ROOT / "docs/migrate/django-with-celery.md"
    new, old = files_of(blocks(page, "python")), files_of(blocks(page, "py"))
    counts = [sum(bool(line) and line[0] != "#" for text in files.values() for line in text.splitlines()) for files in (old, new)]
    models = sum(bool(line) and line[0] != "#" for line in new["shop/models.py"].splitlines())
    assert f"have {counts[0]} lines of code with Celery, and {counts[1] - models} with taskflow" in page.read_text()
    write(new, project.folder)
    project.write(settings=SETTINGS.replace('"shop.db"', '"shop.db", "OPTIONS": {"transaction_mode": "IMMEDIATE"}'))
    script = """
        from django.core.management import call_command
        from django.db import transaction
        from django.test import RequestFactory
        from shop.models import Customer
        from shop.tasks import update_all_statistics
        from shop.views import create_order
        call_command("migrate", run_syncdb=True, verbosity=0)
        call_command("taskflow", "migrate")
        request = RequestFactory().post("/", {"customer": Customer.objects.create().pk, "cents": 500})
        create_order(request)
        with transaction.atomic():
            create_order(request)
            transaction.set_rollback(True)
        update_all_statistics.delay_sync()
        call_command("taskflow", "worker", "--drain")
        print("spent", Customer.objects.get().spent)
    """
    shared = f"sqlite:///{project.folder}/shop.db?shared=1"
    assert "spent 500" in project("manage.py", "shell", "--command", dedent(script), TASKFLOW_BROKER=shared)
    ended = re.findall(r"succeeded +default +shop.tasks.(\w+)", project("manage.py", "taskflow", "jobs", TASKFLOW_BROKER=shared))
    assert sorted(ended) == ["send_receipt", "update_all_statistics", "update_statistics"]
    assert set(re.findall(r"shop.tasks.(\w+)", project("manage.py", "taskflow", "schedules", TASKFLOW_BROKER=shared))) == {
        "sync_stock",
        "update_all_statistics",
    }
