"""A new field of an envelope that a declaration or another place lacks: `test_job_schema.py` fails for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from taskflow.model import job_schema

pytestmark = pytest.mark.slow

_RUN: Final = """
import importlib.util, sys
import pytest

class Pretending:
    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, sys.argv[1]) if name == "taskflow.model.job_schema" else None

sys.meta_path.insert(0, Pretending())
# --assert=plain, because the finder that rewrites assertions would come first.
sys.exit(pytest.main([sys.argv[2], "-rf", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-o", "addopts="]))
"""

_ENDS: Final = {
    "NOT_PLAIN": ', "joins")',
    "OPAQUE": '\n    Opaque("timeout"',
    "SentAndShown": "\n    secrets: tuple[str, ...] = ()\n\n",
}
"""What follows the declarations."""

_UNDECLARED: Final = {"every_field_of_an_envelope_is_declared"}


@pytest.mark.parametrize(
    ("added", "failing"),
    [
        pytest.param({"SentAndShown": "\n    limit: int = 0"}, _UNDECLARED, id="undeclared"),
        pytest.param({"SentAndShown": "\n    limit: int = 0", "NOT_PLAIN": ', "limit"'}, _UNDECLARED, id="not plain"),
        pytest.param(
            {"SentAndShown": "\n    note: str = ''", "OPAQUE": '\n    Opaque("note", "n", str),'},
            _UNDECLARED | {"opaque_fields_have_different_letters_and_come_back"},
            id="opaque",
        ),
    ],
)
def test_each_place_that_lacks_a_declared_field_fails_a_check(tmp_path: Path, added: dict[str, str], failing: set[str]) -> None:
    """The text that is added is all that knows of the field."""
    source = Path(job_schema.__file__).read_text()
    for declaration, text in added.items():
        assert source.count(_ENDS[declaration]) == 1
        source = source.replace(_ENDS[declaration], text + _ENDS[declaration])
    pretended = tmp_path / "job_schema.py"
    pretended.write_text(source)
    command: list[str | Path] = [sys.executable, "-c", _RUN, pretended, Path(__file__).with_name("test_job_schema.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert set(re.findall(r"^FAILED .*::test_(\w+)", said, re.MULTILINE)) == failing, said
