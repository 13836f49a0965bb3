"""The packages of this commit, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.environments import run


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    run(".ci/package", folder, GITHUB_SERVER_URL="https://github.com", GITHUB_REPOSITORY="example/taskflow")
    return folder


@pytest.fixture(scope="session")
def wheel(packages: Path) -> Path:
    [wheel] = packages.glob("dist/*.whl")
    return wheel
