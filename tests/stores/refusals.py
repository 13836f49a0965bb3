"""How commands end where a server refuses them."""

from __future__ import annotations

import re
from typing import Final

from taskflow.cli.exits import Exit
from tests.cli.processes import OUR_FRAMES, Shell

SECRET: Final = "hush-hush"
WRONG: Final = "not-the-secret"


def exits_by_broker(shell: Shell, url: str, *patterns: str) -> None:
    """Check that a worker and a look end with exit code 3, say why, and show neither a traceback nor a secret."""
    shell.environment["TASKFLOW_BROKER"] = url
    for running in [shell.taskflow("worker", "tasks"), shell.taskflow("queues")]:
        assert running.end() == Exit.BROKER, running.said
        for pattern in patterns:
            assert re.search(pattern, running.said), running.said
        assert not OUR_FRAMES.search(running.said), running.said
        assert SECRET not in running.said
        assert WRONG not in running.said
