"""The pictures in docs are there for each page, and are small. `python -m tests.browser.screenshots` makes them."""

from __future__ import annotations

from tests.browser.scene import Scene
from tests.browser.screenshots import PICTURES, THEMES, pages_of

MAX_BYTES = 1_500_000
TOUR = PICTURES.parent / "tour-the-dashboard.md"


def test_each_page_has_pictures_in_the_tour() -> None:
    names = {f"{name}-{theme}.png" for name in pages_of(Scene("", "", "", "", "")) for theme in THEMES}
    assert {path.name for path in PICTURES.iterdir()} == names
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < MAX_BYTES
    text = TOUR.read_text()
    assert [name for name in names if f"(dashboard/{name})" not in text] == []
