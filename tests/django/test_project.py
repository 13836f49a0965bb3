"""A project on Django passes its tests, which Django's runner and pytest-django run in separate processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import ROOT
from tests.support.postgres import shared_postgres
from tests.support.servers import shared_redis

Run = Callable[..., str]

IN_MEMORY = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the project's tests with a broker and a database."""

    def call(*command: str, broker: str = "memory://", database: dict[str, Any] | None = None, warnings: str = "error") -> str:
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "tests.django.project.settings",
            "PROJECT_DATABASE": json.dumps(database or IN_MEMORY),
            "PYTHONPATH": str(ROOT),
            "TASKFLOW_BROKER": broker,
        }
        arguments = [sys.executable, "-W", warnings, "-m", *command]
        ran = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    return call


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        name = shared_postgres().new_database()
        yield shared_postgres().url(name)
        shared_postgres().drop_database(name)
    else:
        yield {
            "memory": "memory://",
            "sqlite": f"sqlite:///{tmp_path}/jobs.db",
            "redis": f"{shared_redis().url}?namespace=django-{os.getpid()}" if request.param == "redis" else "",
        }[request.param]


@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis", "postgres"], indirect=True)
def test_the_tests_of_django_and_of_django_tasks_db_pass(run: Run, broker: str) -> None:
    said = run("django", "test", "tests.django.project", "--buffer", "--pattern", "ported_*.py", broker=broker)
    assert "Ran 104 tests" in said


DATABASES = ["in memory", "sqlite", "postgresql"]


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    if request.param == "postgresql":
        name, parts = shared_postgres().new_database(), urlsplit(shared_postgres().url())
        place = {"USER": parts.username, "HOST": parts.hostname, "PORT": str(parts.port)}
        options: dict[str, Any] = {"options": "-c search_path=public", "application_name": "jobs"}
        yield {"ENGINE": "django.db.backends.postgresql", "NAME": name, "TEST": {"NAME": f"test_{name}"}, "OPTIONS": options, **place}
        shared_postgres().drop_database(name)
    else:
        file = ":memory:" if request.param == "in memory" else str(tmp_path / "app.db")
        options = {"transaction_mode": "IMMEDIATE", "timeout": 20}
        yield {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "TEST": {"NAME": file}, "OPTIONS": options}


@pytest.mark.parametrize("database", DATABASES, indirect=True)
def test_jobs_of_django_s_test_cases_see_the_rows_of_the_test(run: Run, database: dict[str, Any]) -> None:
    said = run("django", "test", "tests.django.project", "--noinput", "--pattern", "cases.py", database=database)
    assert "OK" in said


@pytest.mark.parametrize("database", ["in memory", "postgresql"], indirect=True)
def test_jobs_of_pytest_django_see_the_rows_of_the_test(run: Run, database: dict[str, Any]) -> None:
    plugins = ("-p", "pytest_django", "-p", "pytest_asyncio", "-p", "no:cacheprovider")
    options = ("-c", os.devnull, "-o", "asyncio_default_fixture_loop_scope=function", "-q", *plugins)
    said = run("pytest", *options, f"{ROOT}/tests/django/project/cases_of_pytest.py", database=database, warnings="default")
    assert "4 passed" in said


@pytest.mark.parametrize("database", ["in memory", "postgresql"], indirect=True)
def test_the_dashboard_is_for_members_of_staff(run: Run, database: dict[str, Any]) -> None:
    settings = ("--settings", "tests.django.project.dashboard_settings")
    said = run("django", "test", "tests.django.project", *settings, "--noinput", "--pattern", "dashboard_cases.py", database=database)
    assert "Ran 8 tests" in said
