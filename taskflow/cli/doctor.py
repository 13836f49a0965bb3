"""`taskflow doctor`: checks whether jobs are safe in the store."""

from __future__ import annotations

import argparse
import asyncio

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.namesake import advice
from taskflow.broker.console import Finding
from taskflow.broker.url import masked
from taskflow.cli.exits import Exit
from taskflow.cli.json_text import json_text
from taskflow.model.printable import message, one_line


def run(arguments: argparse.Namespace) -> int:
    app = default_app()
    app.flag(broker=arguments.broker)
    return asyncio.run(_examine(app, as_json=arguments.json))


async def _examine(app: App, *, as_json: bool) -> int:
    """Print the findings. Return 1 if one is a problem, as for any failed check."""
    try:
        findings = [*_of_installation(), *await app.broker().console.examine()]
    finally:
        await app.close()
    if as_json:
        print(json_text({"broker": masked(app.broker_url()), "findings": msgspec.to_builtins(findings)}, indent=2))
    else:
        print(f"broker       {one_line(masked(app.broker_url()))}")
        for finding in findings:
            print(f"{finding.level:<8} {finding.topic}: {message(finding.says)}")
    return Exit.FAILED if any(finding.level == "problem" for finding in findings) else Exit.OK


def _of_installation() -> list[Finding]:
    says = advice()
    return [] if says is None else [Finding("installation", "problem", says)]
