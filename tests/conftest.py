from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _hears_signals() -> None:
    """Also where the tests themselves are run by nohup, or in the background of a script: their processes would ignore what they ignore."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
