"""The example on Django passes its own tests, in a process that Django's settings have for themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT


def test_the_application_on_django_passes_its_tests(tmp_path: Path) -> None:
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "tests.example.documents.settings",
        "DOCUMENTS_DATABASE": str(tmp_path / "documents.db"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "error", "-m", "django", "test", "tests.example.documents"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "Ran 10 tests" in ran.stderr
