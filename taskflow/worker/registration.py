"""Describes a worker to the broker: its name, its deploy, its queues and its jobs."""

from __future__ import annotations

import os
import secrets
import socket

from taskflow.model.failure_cause import LONGEST_DEPLOY
from taskflow.model.session import MOST_NAMES, Session
from taskflow.worker.options import WorkerOptions


def worker_name() -> str:
    """Return the name under which this process registers its sessions."""
    return f"{socket.gethostname()}:{os.getpid()}"


def deploy_name() -> str:
    """Return the name that this process's environment gives to the deploy, or an empty string."""
    return os.environ.get("TASKFLOW_DEPLOY", "")[:LONGEST_DEPLOY]


def new_session(options: WorkerOptions, jobs: tuple[str, ...], *, wants_ends: bool) -> Session:
    """Return a new session, under which a worker with these options registers."""
    return Session(
        id=secrets.token_bytes(16),
        name=worker_name(),
        ttl=options.ttl,
        queues=options.queues.names,
        concurrency=options.concurrency,
        wants_ends=wants_ends,
        jobs=jobs if len(jobs) <= MOST_NAMES else (),
        deploy=deploy_name(),
    )
