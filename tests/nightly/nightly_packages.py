"""What a release publishes: the packages, their types, the oldest dependencies, first steps, and workers of the release before.

Needs the package index. `.ci/package` builds the packages and checks them with twine and check-wheel-contents.
"""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import README, blocks, files_of, write
from tests.support.environments import ROOT, Place, environment, run
from tests.support.postgres import shared_postgres
from tests.support.processes import free_port
from tests.support.servers import shared_redis

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Final = ("fast", "postgres", "django", "litestar", "reload", "completion", "prometheus", "otel", "sentry", "dashboard")
LOWEST: Final = {
    found[1]: found[2]
    for group in (PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS))
    for requirement in group
    if (found := re.match(r"([\w-]+)>=([\w.]+)", requirement))
}

CONSUMER: Final = """
from typing import assert_type
from taskflow import JobHandle, job

@job
async def add(x: int, y: int = 1) -> int:
    return x + y

async def use() -> None:
    handle = await add.delay(1, y=2)
    assert_type(handle, JobHandle[int])
    assert_type(await handle.result(timeout=1), int)
"""

IMPORT_ALL: Final = """
import pkgutil, importlib, taskflow
for module in pkgutil.walk_packages(taskflow.__path__, "taskflow."):
    if not module.name.startswith(("taskflow.__main__", "taskflow.testing.plugin", "taskflow.django")):
        importlib.import_module(module.name)
"""


def test_both_packages_have_the_files_of_the_repository_and_no_others(packages: Path, wheel: Path) -> None:
    ours = set(run("git", "ls-files", "taskflow").split())
    assert "taskflow/py.typed" in ours
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == ours
    [sdist] = packages.glob("dist/*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    described = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in names if ".egg-info/" not in name} == ours | described


def test_the_description_on_pypi_links_to_files_of_the_release(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(archive.read(name).decode())
    urls = dict(value.split(", ") for value in metadata.get_all("Project-URL", []))
    assert list(urls) == ["Homepage", "Documentation", "Source", "Changelog", "Issues"]
    targets = [*urls.values(), *re.findall(r"\]\(([^)#]+)", str(metadata.get_payload()))]
    assert [target for target in targets if not target.startswith("https://")] == []
    files = [target.partition(f"/blob/v{PROJECT['version']}/")[2] for target in targets if "/example/taskflow/blob/" in target]
    assert len(files) > 30
    assert [file for file in files if not file or not (ROOT / file).exists()] == []


def test_the_bill_of_materials_lists_the_dependencies(packages: Path) -> None:
    bill = json.loads((packages / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", PROJECT["version"])
    declared = {re.split("[>=]", requirement)[0].replace("-", "_") for requirement in PROJECT["dependencies"]}
    assert declared <= {component["name"].replace("-", "_") for component in bill["components"]}


def test_a_consumer_of_the_wheel_gets_its_types(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", wheel, "mypy", "pyright[nodejs]")
    (tmp_path / "right.py").write_text(CONSUMER)
    (tmp_path / "wrong.py").write_text(CONSUMER + '    await add.delay("1")\n')
    for checker in (["-m", "mypy", "--strict"], ["-m", "pyright", "--pythonpath", str(python)]):
        run(python, *checker, "right.py", cwd=tmp_path)
        ran = subprocess.run([python, *checker, "wrong.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout.count("error:")) == (1, 1), ran.stdout


def pythons_here() -> list[str]:
    """Return the oldest Python that the package accepts, and the newest on this machine."""
    found = [name for minor in (11, 14, 13, 12) for name in (f"python3.{minor}", f"/usr/bin/python3.{minor}") if works(name)]
    return list(dict.fromkeys(found[:1] + [name for name in found if "3.11" not in name][:1]))


def works(name: str) -> bool:
    return subprocess.run(["bash", "-c", f"{name} -m venv --help"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("python", pythons_here())
def test_a_newcomer_gets_along_with_the_wheel_alone(python: str, wheel: Path, tmp_path: Path) -> None:
    """The commands and files of the README's quick start and of the tutorial, one after the other, in an empty folder."""
    interpreter = environment(tmp_path / "venv", wheel, python=python)
    hello = Place(tmp_path / "hello", interpreter, {"HOME": str(tmp_path), "PYTHONPATH": ""})
    write(files_of(blocks(README, "python")[:1]), hello.folder)
    assert "to a@example.com" in hello.run(f"{blocks(README, 'sh')[1].text}taskflow --help && taskflow demo")
    shop = Place(tmp_path / "shop", interpreter, {**hello.variables, "TASKFLOW_BROKER": "sqlite:///taskflow.db"})
    for page in ("first-job", "web-application", "production"):
        follow(ROOT / f"docs/tutorial/{page}.md", shop)
    states = re.findall("succeeded|failed", shop.run("taskflow jobs"))
    assert sorted(states) == ["failed", "succeeded", "succeeded"], "the last import cannot work"


def follow(page: Path, place: Place) -> None:
    """Follow a page of the tutorial. What it installs or exports for a broker is there; its servers get free ports."""
    ports = {"8000": f"{free_port()}", "8080": f"{free_port()}"}
    last_id = "ID"
    with ExitStack() as running:
        for block in blocks(page):
            if block.language == "python":
                write(files_of([block]), place.folder)
            elif block.language == "toml":
                write({"pyproject.toml": block.text}, place.folder)
            for line in block.text.splitlines() if block.language == "bash" else ():
                command = re.sub("80[08]0", lambda port: ports[port[0]], line).replace("ID", last_id)
                if re.match(r"uvicorn|taskflow worker", command):
                    running.enter_context(place.running(command.replace("uvicorn", f"uvicorn --port {ports['8000']}")))
                elif not re.match(r"mkdir|cd|python3|\. \.venv|export|pip install .*taskflow", command):
                    said = place.run(
                        command.replace("curl", "curl --fail --silent --show-error --retry 60 --retry-connrefused --retry-delay 1")
                    )
                    last_id = next(iter(re.findall(r"[0-9a-f-]{36}", said)), last_id)
        place.run("taskflow worker app.tasks --drain --processes 1")


def test_the_wheel_works_with_the_oldest_dependencies_that_it_declares(wheel: Path, tmp_path: Path) -> None:
    constraints = tmp_path / "lowest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in LOWEST.items()))
    python = environment(tmp_path / "venv", "--constraint", constraints, f"{wheel}[{','.join(EXTRAS)}]")
    run(python, "-c", IMPORT_ALL, cwd=tmp_path)
    run(python, "-m", "taskflow", "demo", cwd=tmp_path)


def test_the_fast_tier_passes_with_the_oldest_dependencies(tmp_path: Path) -> None:
    """Except typing-extensions: libraries that only the tests use need a newer one."""
    python = environment(tmp_path / "venv", "--editable", f"{ROOT}[test]")
    oldest = [f"{name}=={version}" for name, version in LOWEST.items() if name != "typing-extensions"]
    run(python.with_name("pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps", *oldest)
    # What an import loads is measured with the newest driver.
    run(python, "-m", "pytest", "-n", "auto", "-m", "fast", "-p", "no:cacheprovider", "--ignore", "tests/architecture")


# --- beside the release before ----------------------------------------------------------------------------------------

JOBS: Final = """
import asyncio, sys
from taskflow import Backoff, JobContext, JobHandle, enqueue, job

@job(name="work", max_attempts=2)
async def work(ctx: JobContext, release: str, number: int) -> str:
    if number % 10 == 0 and ctx.attempt == 1:
        raise OSError("once")
    return f"{release} {number}"

async def send(release):
    calls = [work.options(retry=Backoff(base=0.1), tags=(release,)).bind(release, number) for number in range(100)]
    handles = [*await enqueue(calls), await work.options(key="one", after=1).delay(release, 101)]
    print(*(handle.id for handle in handles))

async def check(*ids):
    results = [await JobHandle.of(id, job=work).result(timeout=60) for id in ids]
    print(*sorted({result.split()[0] for result in results}), len(results))

if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
"""


@dataclass(frozen=True)
class Release:
    """An installed release, called "before" or "new", in whose environment commands run on a store."""

    name: str
    python: Path
    folder: Path
    url: str

    def run(self, *arguments: str) -> str:
        return run(self.python, *arguments, cwd=self.folder, TASKFLOW_BROKER=self.url)

    def worker(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(self.python), "-m", "taskflow", "worker", "work", *arguments]
        environment = {**os.environ, "TASKFLOW_BROKER": self.url}
        return subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture(scope="session")
def wheel_before(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The wheel of the newest tagged release that is not this commit's. Without one, before 0.1.0 is tagged, this commit's own wheel."""
    tags = run("git", "tag", "--list", "v*", "--sort=-version:refname", "--no-contains", "HEAD", "--merged", "HEAD").split()
    if not tags:
        return wheel
    clone, folder = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("wheel")
    run("git", "clone", "--quiet", "--branch", tags[0], ROOT, clone)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, clone)
    [before] = folder.glob("*.whl")
    return before


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory, wheel: Path, wheel_before: Path) -> dict[str, Path]:
    wheels = {"before": wheel_before, "new": wheel}
    return {name: environment(tmp_path_factory.mktemp(name), f"{which}[postgres]") for name, which in wheels.items()}


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def releases(request: pytest.FixtureRequest, tmp_path: Path, pythons: dict[str, Path]) -> Iterator[dict[str, Release]]:
    (tmp_path / "work.py").write_text(JOBS)
    url = f"sqlite:///{tmp_path}/queue.db"
    if request.param == "redis":
        url = f"{shared_redis().url}?namespace=releases-{uuid.uuid4().hex}"
    elif request.param == "postgres":
        url = shared_postgres().url(shared_postgres().new_database())
    yield {name: Release(name, python, tmp_path, url) for name, python in pythons.items()}
    if request.param == "postgres":
        shared_postgres().drop_database(url.rpartition("/")[2].partition("?")[0])


@pytest.mark.parametrize(("first", "second"), [("before", "new"), ("new", "before")])
def test_workers_of_two_releases_share_a_store(releases: dict[str, Release], first: str, second: str) -> None:
    """Each sends and runs jobs beside the other. Then the new workers go on alone, in the shared store."""
    before, new = releases["before"], releases["new"]
    if first == "new" and before.run("-m", "taskflow", "--version") != new.run("-m", "taskflow", "--version"):
        pytest.skip("the promise is that a new release reads the store of the release before, not the reverse")
    sent = {name: releases[name].run("work.py", "send", name).split() for name in (first, second)}
    assert sent[first][-1] == sent[second].pop(), "the key of one release's job holds for the other"
    both = [before.worker(), new.worker()]
    try:
        for reader in releases.values():
            for name, ids in sent.items():
                assert reader.run("work.py", "check", *ids).split() == [name, f"{len(ids)}"]
    finally:
        for worker in both:
            worker.terminate()
    assert [worker.wait(60) for worker in both] == [0, 0]
    last = before.run("work.py", "send", "last").split()
    assert new.worker("--drain").wait(60) == 0
    assert new.run("work.py", "check", *last).split() == ["last", "101"]
