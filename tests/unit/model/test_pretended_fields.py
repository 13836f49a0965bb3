"""A field that the job schema declares, and that other places lack: `test_job_schema.py` fails once for each such place."""

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
    "FIELDS": "\n)\n\nBY_NAME: ",
    "OPAQUE": '\n    Opaque("timeout"',
    "SentAndShown": "\n    secrets: tuple[str, ...] = ()\n\n",
    "JobState": "\n    ended_at: int | None = None\n\n",
}
"""What follows the declarations."""


_SENT: Final = {"every_field_of_an_envelope_is_declared_as_sent_or_as_opaque"}
_LIMIT: Final = {"SentAndShown": "limit: int = 0", "JobState": "limit: int = 0"}


@pytest.mark.parametrize(
    ("added", "failing"),
    [
        pytest.param(
            {"FIELDS": 'Field("limit", COUNT, 0, sent=("limit",)),', **_LIMIT},
            {*_SENT, "the_memory_store_takes_a_field_over_as_it_was_sent"},
            id="sent",
        ),
        pytest.param(
            {"FIELDS": 'Field("limit", COUNT, 0, sent=("limit",), is_packed=True),', **_LIMIT},
            _SENT,
            id="sent and packed",
        ),
        pytest.param(
            {"FIELDS": 'Field("limit", COUNT, 0, sent=("limit",), is_plain=True),', **_LIMIT},
            {
                *_SENT,
                "the_memory_store_takes_a_field_over_as_it_was_sent",
            },
            id="sent and plain",
        ),
        pytest.param(
            {"FIELDS": 'Field("stalls", COUNT, 0, cleared_by=(OUTCOME, REDO)),'},
            {
                "the_memory_store_keeps_every_field",
                "the_counters_are_declared_and_an_outcome_resets_some_of_them",
            },
            id="a counter of runs",
        ),
        pytest.param(
            {"OPAQUE": 'Opaque("note", "n", str),', "SentAndShown": "note: str = ''"},
            {"every_field_of_an_envelope_is_declared_as_sent_or_as_opaque", "opaque_fields_have_different_letters_and_come_back"},
            id="opaque",
        ),
    ],
)
def test_each_place_that_lacks_a_declared_field_fails_a_check(tmp_path: Path, added: dict[str, str], failing: set[str]) -> None:
    """The lines that are added are all that knows of the field."""
    source = Path(job_schema.__file__).read_text()
    for declaration, line in added.items():
        assert source.count(_ENDS[declaration]) == 1
        source = source.replace(_ENDS[declaration], f"\n    {line}{_ENDS[declaration]}")
    pretended = tmp_path / "job_schema.py"
    pretended.write_text(source)
    command: list[str | Path] = [sys.executable, "-c", _RUN, pretended, Path(__file__).with_name("test_job_schema.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert set(re.findall(r"^FAILED .*::test_(\w+)", said, re.MULTILINE)) == failing, said
