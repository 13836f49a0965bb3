"""Which names stand for which jobs; who may take a name; what a module run as __main__ is called."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from taskflow import DeclarationError, job
from taskflow.app.app import App, default_app
from tests.unit.app.bench import Bench, loaded
from tests.unit.app.jobs import add

pytestmark = pytest.mark.slow


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


def test_jobs_of_the_decorator_are_in_the_global_registry() -> None:
    assert default_app().registry.get(add.name) is add


def test_the_same_function_again_replaces_silently() -> None:
    """A reload; and a module that runs as __main__ and is then imported."""
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
    """And the first stays registered."""
    app = App()
    standing = loaded(first, app=app, file="/srv/app/one.py").work
    with pytest.raises(DeclarationError) as caught:
        loaded(second, app=app, file="/srv/app/two.py")
    for fragment in (f"'{clash}'", "/srv/app/one.py:4", "/srv/app/two.py:4", "name="):
        assert fragment in str(caught.value)
    assert app.registry.get(clash) is standing


def test_another_function_of_the_same_file_is_another_owner() -> None:
    app = App()
    with pytest.raises(DeclarationError, match=r"work\).*other\)"):
        loaded(one("mail") + one("mail", function="other"), app=app)


def test_a_function_in_a_function_needs_a_name() -> None:
    with pytest.raises(DeclarationError, match=r"test_registry.py:\d+ .*a worker cannot import.*name="):

        @job
        def inner() -> None: ...

    @job(name="inner with a name")
    def named() -> None: ...

    assert named.name == "inner with a name"


async def test_a_renamed_job_is_run_under_its_old_name(bench: Bench) -> None:
    """What was sent by the old code, by the new one."""
    old, new = App(), App()
    before = loaded(one("old_name"), app=old)
    loaded(one("new_name", aliases=("old_name",)), app=new)
    with old.using(bench.broker):
        handle = await before.work.delay()
        await bench.run_all(by=new)
        assert await handle.result() == "new_name"


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


def test_a_module_run_as_main_has_the_name_that_a_worker_sees(tmp_path: Path) -> None:
    """As `taskflow worker app.tasks`, started in this folder, imports it: by -m, by its path, by its absolute path."""
    file = written(tmp_path, "app/tasks.py", SCRIPT)
    for command in (("-m", "app.tasks"), ("app/tasks.py",), (str(file),)):
        assert said_by(tmp_path, *command) == "app.tasks.add"
    assert said_by(tmp_path, "-c", "from app.tasks import add; print(add.name)") == "app.tasks.add"


def test_a_script_in_the_current_folder(tmp_path: Path) -> None:
    written(tmp_path, "tasks.py", SCRIPT)
    assert said_by(tmp_path, "tasks.py") == said_by(tmp_path, "-m", "tasks") == "tasks.add"


def test_a_package_run_as_main(tmp_path: Path) -> None:
    """The worker imports app.__main__, where the job is; not app, where it is not."""
    written(tmp_path, "app/__main__.py", SCRIPT)
    written(tmp_path, "app/__init__.py", "")
    assert said_by(tmp_path, "-m", "app") == "app.__main__.add"
    assert said_by(tmp_path, "-c", "from app.__main__ import add; print(add.name)") == "app.__main__.add"


def test_a_script_below_a_folder_of_packages(tmp_path: Path) -> None:
    """In the layout with src/, the worker imports app.tasks, not src.app.tasks."""
    written(tmp_path, "src/app/tasks.py", SCRIPT)
    assert said_by(tmp_path, "src/app/tasks.py", path="src") == "app.tasks.add"


def test_a_script_from_elsewhere(tmp_path: Path) -> None:
    file = written(tmp_path, "there/tasks.py", SCRIPT)
    (tmp_path / "here").mkdir()
    assert said_by(tmp_path / "here", str(file)) == "tasks.add"


def test_a_child_that_multiprocessing_spawns(tmp_path: Path) -> None:
    """It runs the main module once more, under another name."""
    written(tmp_path, "app/tasks.py", SPAWNS)
    assert said_by(tmp_path, "app/tasks.py") == said_by(tmp_path, "-m", "app.tasks") == "app.tasks.add"
