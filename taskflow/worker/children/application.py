"""The user's application in a child process. Its modules are imported once, under the names that they have in the worker."""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import sys
from types import ModuleType

from taskflow.app.app import default_app
from taskflow.app.job_type import AnyJob
from taskflow.worker.children.messages import CallRefused, Hello, Import
from taskflow.worker.run_errors import failure_of

_MAIN = "__mp_main__"
"""The name that multiprocessing gives to the main module in a spawned process. Applications may check for it; see `RUN_AS_MAIN`."""


class Application:
    """Imports the application's modules, and finds its jobs. If an import fails, the runs that need the module are refused."""

    def __init__(self, hello: Hello) -> None:
        self._failures: dict[str, CallRefused] = {}
        self._log_level = hello.log_level
        sys.argv[:] = hello.arguments
        default_app().enter_child(hello.settings, is_reachable=hello.is_reachable)
        for module in hello.modules:
            self.load(Import(module))

    @property
    def is_whole(self) -> bool:
        """Return True if every module was imported."""
        return not self._failures

    def load(self, wanted: Import) -> None:
        """Import the module. If that fails, remember why for the runs that need it."""
        try:
            with default_app().importing(wanted.module):
                if wanted.main is None:
                    importlib.import_module(wanted.module)
                else:
                    _load_main(wanted.main)
        except BaseException as error:  # includes SystemExit, or an exception class of the module
            failure = failure_of(error, 1)
            why = f"{wanted.main or wanted.module} cannot be imported in a child process: {failure.type}: {failure.message}"
            self._failures[wanted.module] = CallRefused(why, failure.traceback)

    def find(self, name: str, module: str) -> AnyJob | CallRefused:
        self._log_to_stderr()
        default_app().read_settings()
        if module in self._failures:  # the module may have declared the job before it failed
            return self._failures[module]
        return default_app().registry.get(name) or CallRefused(
            f"{module}, imported in a child process, declares no job {name!r}: declare it at module level, "
            'not inside a function or under `if __name__ == "__main__":`',
            "",
        )

    def _log_to_stderr(self) -> None:
        """Log to stderr, unless the application has set up logging."""
        if not logging.getLogger().handlers:
            logging.basicConfig(level=self._log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def _load_main(main: str) -> None:
    """Import the main module under a name other than `__main__`, so that code meant only for the command does not run again."""
    module = ModuleType(_MAIN)
    is_file = os.path.isabs(main)
    content = runpy.run_path(main, run_name=_MAIN) if is_file else runpy.run_module(main, run_name=_MAIN, alter_sys=True)
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules[_MAIN] = module
