"""The classes for unittest on the page about tests, where pytest is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

WITHOUT_PYTEST = "import sys, unittest; sys.modules['pytest'] = None; unittest.main('page', argv=['page', '-v'])"


@pytest.mark.slow
def test_the_classes_of_the_page_pass_without_pytest(tmp_path: Path) -> None:
    page = [block.text for block in blocks(ROOT / "docs/how-to/test-jobs.md", "python") if "import pytest" not in block.text]
    page = [text.partition("def test_an_account_that_does_not_exist")[0] if "pytest.raises" in text else text for text in page]
    (tmp_path / "page.py").write_text("\n\n".join(page))
    ran = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT_PYTEST], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Ran 3 tests" in ran.stderr
