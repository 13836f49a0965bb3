"""`manage.py taskflow`: taskflow's command line in a Django project."""

from __future__ import annotations

import sys
from argparse import REMAINDER
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandParser
from django.utils.module_loading import module_has_submodule

from taskflow.cli import startup, worker_options
from taskflow.cli.main import main, program
from taskflow.cli.modules import import_targets


class Command(BaseCommand):
    """Runs a taskflow command, after setting up Django and importing each app's `tasks` module."""

    help = "Runs taskflow's commands: see `manage.py taskflow help`."
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command line ``manage.py taskflow ARGUMENTS``, and exit with the code of taskflow's command."""
        parser = CommandParser(add_help=False, allow_abbrev=False)
        for option in ("--settings", "--pythonpath"):  # Django has already applied them
            parser.add_argument(option)
        given = parser.parse_known_args(argv[2:])[1]
        startup.program[:] = sys.orig_argv[1 : len(sys.orig_argv) - len(argv[2:])]
        sys.argv[:] = [f"{argv[0]} {argv[1]}", *given]
        _prepare(given)
        sys.exit(program())

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("arguments", nargs=REMAINDER, help="a taskflow command with its arguments")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run a call such as ``call_command("taskflow", "status")`` in this process. Raises SystemExit with the code unless it is 0."""
        _prepare(options["arguments"])
        if code := main(options["arguments"]):
            sys.exit(code)


def _prepare(given: list[str]) -> None:
    """Have `worker` and `check` import each app's `tasks`. For other commands, import them here, so that arguments can be decoded."""
    found = [f"{each.name}.tasks" for each in apps.get_app_configs() if module_has_submodule(each.module, "tasks")]
    worker_options.own_modules[:], worker_options.found_modules[:] = ["taskflow.django.setup"], found
    if given[:1] not in (["worker"], ["check"]):
        import_targets(found, all_submodules=False)
