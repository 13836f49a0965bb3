"""The application that the module-level functions of taskflow use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from taskflow.app.app import App


class _Slot:
    def __init__(self) -> None:
        self.app: App | None = None


_slot: Final = _Slot()


def default_app() -> App:
    assert _slot.app is not None, "taskflow.app.app must be imported first: it sets the default app"
    return _slot.app


def set_default_app(app: App) -> None:
    _slot.app = app
