"""How commands end where a server refuses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from taskflow.cli.exit_codes import Exit
from tests.cli.inprocess import Cli
from tests.cli.processes import OUR_FRAMES
from tests.support.postgres import PostgresServer

SECRET: Final = "hush-hush"
WRONG: Final = "not-the-secret"

_TASKS: Final = "from taskflow import job\n\n@job\nasync def note(number: int) -> None: ...\n"


def exits_by_broker(cli: Cli, url: str, *patterns: str, look: str | None = None) -> None:
    """Check that a worker and a look end with exit code 3, say why, and show neither a traceback nor a secret.

    `look` is what the look says, if that is something else: it creates no store, so it is not refused that.
    """
    cli.write("tasks.py", _TASKS)
    for command in (["worker", "tasks", "--start-timeout", "0.2"], ["queues"]):
        said = cli(*command, "--broker", url, code=Exit.BROKER)
        told = said.out + said.err
        for pattern in patterns if look is None or command != ["queues"] else (look,):
            assert re.search(pattern, told), told
        assert not OUR_FRAMES.search(told), told
        assert SECRET not in told
        assert WRONG not in told


@contextmanager
def locked_postgres() -> Iterator[PostgresServer]:
    """A server whose user app has a password, and may make a schema in the database postgres alone."""
    with PostgresServer(fsync=False, access=["host all app all scram-sha-256"]) as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}'; GRANT CREATE ON DATABASE postgres TO app")
        yield server
