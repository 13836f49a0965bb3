"""The command line called in this process: an application in a separate folder, and `taskflow.cli.main.main`."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.cli.main import main
from taskflow.model.rules import Rules
from tests.cli.json_output import check

T = TypeVar("T")

URL = "sqlite:///queue.db"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


class Cli:
    """`cli("status")` runs a command in `folder`, whose broker is the file queue.db there."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *argv: str, code: int = 0) -> Said:
        self._capsys.readouterr()
        try:
            ended = main(argv)
        except SystemExit as ending:  # argparse's
            ended = int(ending.code or 0)
        written = self._capsys.readouterr()
        said = Said(ended, written.out, written.err)
        assert ended == code, said
        return said

    def json(self, *argv: str, code: int = 0) -> Any:
        """Return the command's output, which must be as documented."""
        document = json.loads(self(*argv, "--json", code=code).out, parse_constant=pytest.fail)
        check(argv, document)
        return document

    def jobs(self, *filters: str) -> list[Any]:
        """Return the jobs of a page."""
        jobs: list[Any] = self.json("jobs", *filters)["jobs"]
        return jobs

    def write(self, path: str, source: str) -> None:
        """Write a file of the application; its folders become packages."""
        file = self.folder / path
        for parent in [parent for parent in file.parents if parent.is_relative_to(self.folder) and parent != self.folder]:
            parent.mkdir(exist_ok=True)
            (parent / "__init__.py").touch()
        file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    def load(self, module: str) -> Any:
        """Import a module of the application, as the worker in this process imports it too."""
        return importlib.import_module(module)

    def with_broker(self, do: Callable[[Broker], Awaitable[T]], rules: Rules | None = None) -> T:
        async def opened() -> T:
            broker = connect(os.environ["TASKFLOW_BROKER"], rules=rules)
            try:
                return await do(broker)
            finally:
                await broker.close()

        return asyncio.run(opened())

    def forget_modules(self) -> None:
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                del sys.modules[name]
