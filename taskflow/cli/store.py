"""Opens the store for a command."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from taskflow.app.app import App
from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerRefused


def what_is_there(app: App) -> Broker:
    """The application's broker. BrokerRefused when it is a file that nobody has made yet: to look makes none."""
    broker = app.broker()  # says what is wrong with the URL
    url = urlsplit(app.broker_url())
    file = os.path.realpath(unquote(url.path.removeprefix("/")))
    if url.scheme == "sqlite" and not os.path.exists(file) and os.path.isdir(os.path.dirname(file)):
        raise BrokerRefused(f"there is no file {file}: the first job makes it; if the jobs are elsewhere, say where by --broker")
    return broker
