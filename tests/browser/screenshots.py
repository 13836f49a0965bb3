"""`python -m tests.browser.screenshots [FOLDER]`: makes the pictures of the dashboard in docs, or in a folder.

The jobs, the clock and the ids are the same each time, so a picture changes only if the page does.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image
from playwright.sync_api import Browser

from tests.browser.chromium import chromium
from tests.browser.scene import NEW, Scene, clock_for, fill
from tests.browser.stage import Stage
from tests.support.harnesses import MemoryHarness
from tests.support.world import World

PICTURES: Final = Path(__file__).parents[2] / "docs/how-to/dashboard"
NOW: Final = datetime(2026, 11, 30, 12, 0, 30, tzinfo=UTC)
MINUTES: Final = 360
THEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
WIDTH, MAX_HEIGHT = 1_100, 900  # pixels
COLORS: Final = 128
IS_SETTLED: Final = "() => !document.querySelector('main[data-live]') || document.getElementById('live').textContent === 'live'"


def pages_of(scene: Scene) -> Mapping[str, str]:
    """Return the paths of the pages by the names of their pictures."""
    return {
        "overview": "/",
        "jobs": "/jobs?status=ready",
        "job": f"/jobs/{scene.waiting}",
        "failed-job": f"/jobs/{scene.failed}",
        "failures": f"/failures?deploy={NEW}",
        "preview": "/act?action=retry&status=failed&queue=imports",
        "queue": "/queues/imports",
        "workers": "/workers",
        "schedules": "/schedules",
        "calendar": "/schedules/calendar?tz=Europe/Paris",
        "charts": "/charts?hours=6",
        "audit": "/audit",
    }


class _Kind(type(datetime)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)


class _Frozen(datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return NOW.astimezone(tz)


def freeze() -> None:
    """Let the dashboard read the clock of the scene. The event loop goes on by the real one."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("taskflow.dashboard.", "taskflow.app.")) and getattr(module, "datetime", None) is datetime:
            module.datetime = _Frozen  # type: ignore[attr-defined]


def take(browser: Browser, folder: Path, width: int = WIDTH, max_height: int = MAX_HEIGHT) -> None:
    with Stage(lambda: World(MemoryHarness, clock=clock_for(NOW, MINUTES))) as stage:
        scene = stage.run(lambda world: fill(world, NOW))
        for theme in THEMES:
            context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 300}, reduced_motion="reduce")
            page = context.new_page()
            for name, path in pages_of(scene).items():
                page.set_viewport_size({"width": width, "height": 300})  # a page is at least as high as its window
                page.goto(stage.url + path)
                page.wait_for_function(IS_SETTLED)
                height = min(max_height, int(page.evaluate("document.documentElement.scrollHeight")))
                page.set_viewport_size({"width": width, "height": height})
                _save(page.screenshot(), folder / f"{name}-{theme}.png")
            context.close()


def _save(picture: bytes, path: Path) -> None:
    """With few colours, which makes the file four times smaller."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    freeze()
    with chromium() as browser:
        take(browser, folder)


if __name__ == "__main__":
    main()
