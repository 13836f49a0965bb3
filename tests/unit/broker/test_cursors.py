"""Cursors of pages."""

from __future__ import annotations

import pytest

from taskflow.broker.paging import POSITION_TYPES, _decoded, _encoded
from taskflow.model.record import Status

SECTIONS: list[Status | None] = [Status.FAILED]


def test_a_page_begins_behind_a_job_whose_time_is_damaged() -> None:
    """A changed bit puts the end of a job 140,000 years away. The cursor behind it was refused, so no later page could be read."""
    place = (Status.FAILED, 5, (-4_613_453_244_027_387_904, 7))
    assert _decoded(_encoded(*place), SECTIONS, POSITION_TYPES) == place


@pytest.mark.parametrize("value", [2**63, -(2**63)])
def test_a_number_that_no_store_has_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="the cursor is damaged"):
        _decoded(_encoded(Status.FAILED, 5, (value, 7)), SECTIONS, POSITION_TYPES)
