"""Every public name has its entry in the reference."""

from __future__ import annotations

import re

import taskflow
from tests.docs.pages import ROOT


def test_every_public_name_is_in_the_reference_of_the_api() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE)) == taskflow.__all__
