"""`taskflow doctor`: checks whether jobs are safe in the store."""

from __future__ import annotations

import argparse
from typing import Final

import msgspec

from taskflow.app.app import App
from taskflow.app.package_conflict import advice
from taskflow.broker.console import Console, Finding
from taskflow.broker.url import masked
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.terminal import GREEN, RED, YELLOW, painted
from taskflow.model.errors import BrokerError, BrokerRefused
from taskflow.model.printable import message, one_line

OF_LEVEL: Final = {"ok": GREEN, "note": YELLOW, "problem": RED}


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _examine)


async def _examine(app: App, arguments: argparse.Namespace) -> int:
    """Print the findings. Return 1 if any of them is a problem. If there is no store, print those about the installation."""
    findings = _of_installation()
    try:
        console = (await existing_broker(app)).console
        findings += await console.examine()
        try:
            findings += await _of_workers(console)
        except BrokerRefused:
            if not _has_problem(findings):  # otherwise they say why
                raise
    except BrokerError:
        if findings:
            _print(app, findings, arguments)
        raise
    _print(app, findings, arguments)
    return Exit.FAILED if _has_problem(findings) else Exit.OK


def _has_problem(findings: list[Finding]) -> bool:
    return any(finding.level == "problem" for finding in findings)


def _print(app: App, findings: list[Finding], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json({"broker": masked(app.broker_url()), "findings": msgspec.to_builtins(findings)})
    else:
        print(f"broker   {one_line(masked(app.broker_url()))}")
        for finding in findings:
            print(f"{painted(f'{finding.level:<8}', OF_LEVEL[finding.level])} {finding.topic}: {message(finding.says)}")


async def _of_workers(console: Console) -> list[Finding]:
    """Return what running workers have reported: a store may answer everything but their claims, or their upkeep."""
    workers = [worker.session for worker in await console.workers()]
    troubled = [Finding(f"worker {one_line(worker.name)}", "problem", worker.trouble) for worker in workers if worker.trouble]
    return troubled or [Finding("workers", "ok", f"no trouble reported by {len(workers):,}")] * bool(workers)


def _of_installation() -> list[Finding]:
    says = advice()
    return [] if says is None else [Finding("installation", "problem", says)]
