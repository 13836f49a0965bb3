"""What @job makes of a function, what it refuses, which function may have a name, and the name of a module run as __main__."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

import pytest

from taskflow import DeclarationError, InvalidJobId, JobContext, JobHandle, TaskflowError, job
from taskflow.app.app import App
from tests.unit.app.bench import loaded


def one(name: str, *, aliases: tuple[str, ...] = (), function: str = "work") -> str:
    return textwrap.dedent(f"""
        from taskflow import job

        @job(name={name!r}, aliases={aliases!r})
        async def {function}() -> str:
            return "{name}"
    """)


def test_a_job_is_called_by_module_and_qualified_name() -> None:
    app = App()
    source = """
from taskflow import job

@job
async def plain() -> None: ...

class Group:
    @staticmethod
    @job
    def inside() -> None: ...
"""
    loaded(source, app=app)
    assert [each.name for each in app.registry] == ["app.tasks.Group.inside", "app.tasks.plain"]


def test_the_same_function_again_replaces_silently() -> None:
    """A reload does this; so does a module that runs as __main__ and is then imported."""
    app = App()
    loaded(one("mail"), app=app)
    second = loaded(one("mail"), app=app)
    assert app.registry.get("mail") is second.work
    assert len(app.registry) == 1


def test_a_reload_forgets_the_aliases_that_are_gone() -> None:
    app = App()
    loaded(one("mail", aliases=("post",)), app=app)
    loaded(one("mail", aliases=("letter",)), app=app)
    assert app.registry.get("post") is None
    assert app.registry.get("letter") is app.registry.get("mail")


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (one("mail"), one("mail"), "mail"),
        (one("mail"), one("post", aliases=("mail",)), "mail"),
        (one("post", aliases=("mail",)), one("mail"), "mail"),
        (one("post", aliases=("old",)), one("letter", aliases=("old",)), "old"),
    ],
    ids=["names", "alias and name", "name and alias", "aliases"],
)
def test_another_owner_is_an_error_that_names_both_places(first: str, second: str, clash: str) -> None:
    """The first function remains registered."""
    app = App()
    standing = loaded(first, app=app, file="/srv/app/one.py").work
    with pytest.raises(DeclarationError) as caught:
        loaded(second, app=app, file="/srv/app/two.py")
    for fragment in (f"'{clash}'", "/srv/app/one.py:4", "/srv/app/two.py:4", "name="):
        assert fragment in str(caught.value)
    assert app.registry.get(clash) is standing


def test_a_function_in_a_function_needs_a_name() -> None:
    with pytest.raises(DeclarationError, match=r"test_registry.py:\d+ .*a worker cannot import.*name="):

        @job
        def inner() -> None: ...

    @job(name="inner with a name")
    def named() -> None: ...

    assert named.name == "inner with a name"


# --- run as __main__ ------------------------------------------------------------------------------------------------

SCRIPT = """
from taskflow import job

@job
def add(x: int) -> int:
    return x

if __name__ == "__main__":
    print(add.name)
"""

SPAWNS = """
import multiprocessing
from taskflow import job

@job
def add(x: int) -> int:
    return x

def tell() -> None:
    print(add.name, flush=True)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=tell)
    child.start()
    child.join()
"""


def said_by(folder: Path, *command: str, path: str = "") -> str:
    environment = {"PATH": "", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "folder", "command", "name"),
    [
        ("app/tasks.py", ".", ("-m", "app.tasks"), "app.tasks.add"),
        ("app/tasks.py", ".", ("app/tasks.py",), "app.tasks.add"),
        ("app/tasks.py", ".", ("{file}",), "app.tasks.add"),
        ("app/tasks.py", ".", ("-c", "from app.tasks import add; print(add.name)"), "app.tasks.add"),
        ("tasks.py", ".", ("tasks.py",), "tasks.add"),
        ("app/__main__.py", ".", ("-m", "app"), "app.__main__.add"),
        ("src/app/tasks.py", ".", ("src/app/tasks.py",), "app.tasks.add"),
        ("there/tasks.py", "here", ("{file}",), "tasks.add"),
    ],
)
def test_a_module_run_as_main_has_the_name_that_a_worker_sees(
    tmp_path: Path, file: str, folder: str, command: tuple[str, ...], name: str
) -> None:
    """`taskflow worker app.tasks`, started in that folder, imports it under this name. In the layout with src/, it imports app.tasks."""
    (tmp_path / "here").mkdir()
    script = written(tmp_path, file, SCRIPT)
    assert said_by(tmp_path / folder, *(part.format(file=script) for part in command), path="src") == name


@pytest.mark.slow
def test_a_child_that_multiprocessing_spawns(tmp_path: Path) -> None:
    """It runs the main module once more, under another name."""
    written(tmp_path, "app/tasks.py", SPAWNS)
    assert said_by(tmp_path, "app/tasks.py") == said_by(tmp_path, "-m", "app.tasks") == "app.tasks.add"


# --- what @job makes of a function, and what it refuses ---------------------------------------------------------------


any_job: Any = job


@job(name="tests.declaring.documented")
async def documented(ctx: JobContext, day: int, *, unit: str = "h") -> str:
    """Say it."""
    return f"{day}{unit}"


@job(name="tests.declaring.plain")
def plain(path: str) -> str:
    return path


# --- a job looks like its function ------------------------------------------------------------------------------------


def test_a_job_has_its_functions_name_and_docstring() -> None:
    assert documented.__name__ == documented.__qualname__ == "documented"
    assert documented.__doc__ == "Say it."
    assert documented.__module__ == __name__
    assert documented.__wrapped__ is documented.function
    assert inspect.unwrap(documented) is documented.function
    assert inspect.getsourcefile(inspect.unwrap(documented)) == __file__
    assert plain.__doc__ is None


def test_a_jobs_signature_is_that_of_its_callers() -> None:
    assert str(inspect.signature(documented)) == "(day: 'int', *, unit: 'str' = 'h') -> 'str'"
    assert str(inspect.signature(plain)) == "(path: 'str') -> 'str'"
    assert typing.get_type_hints(plain) == {"path": str, "return": str}


# --- methods ----------------------------------------------------------------------------------------------------------


class Mailer:
    def send(self, to: str) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @staticmethod
    def check(to: str) -> str:
        return to


METHODS: list[Any] = [Mailer.send, Mailer().send, Mailer.make, vars(Mailer)["make"]]


@pytest.mark.parametrize("method", METHODS, ids=["in its class", "bound", "bound to the class", "a classmethod"])
def test_a_method_is_refused_as_a_job(method: Any) -> None:
    with pytest.raises(DeclarationError, match=r"methods cannot be jobs.*make it a module-level function") as caught:
        any_job(name="tests.declaring.method")(method)
    assert "test_registry.py:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_with_a_parameter_called_self_is_no_method() -> None:
    def about(self: str) -> str:
        return self

    assert any_job(name="tests.declaring.about")(about)("me") == "me"


def test_an_async_function_in_a_plain_wrapper_is_refused() -> None:
    """It was declared as a plain job, and its coroutine was never awaited."""

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    async def fetch(n: int) -> int:
        return n

    with pytest.raises(DeclarationError, match=r"test_registry.py:\d+ .*wraps this async function in a plain one.* with `async def`"):
        any_job(name="tests.declaring.wrapped")(logged(fetch))


# --- handles of ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "", "job-17", None, 17, b"0123456789abcdef", "x" * 5_000, ["a"]], ids=lambda each: repr(each)[:20])
def test_a_text_that_is_no_id_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(InvalidJobId, match=r"is not a job id: expected text such as '01a20e69-e073-7000-9acc-49abe1cd4c9a'") as caught:
        JobHandle.of(text)
    assert isinstance(caught.value, TaskflowError)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 400
