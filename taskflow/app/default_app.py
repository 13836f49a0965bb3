"""The one application that the module-level names of taskflow speak for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from taskflow.app.app import App


class _Slot:
    def __init__(self) -> None:
        self.app: App | None = None


_slot: Final = _Slot()


def default_app() -> App:
    assert _slot.app is not None, "taskflow.app.app fills the slot as it is imported, before anything that asks"
    return _slot.app


def set_default_app(app: App) -> None:
    _slot.app = app
