"""The options of a job's calls under the current settings. They are computed once, not for each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from taskflow.app.options import Options
from taskflow.app.settings import Settings
from taskflow.model.envelope import Envelope

if TYPE_CHECKING:  # loaded only by jobs that declare keys
    from taskflow.app.declared_key import DeclaredKey


class Resolved(msgspec.Struct, frozen=True):
    """The options of a job's calls under `settings`, and the fields of the calls' envelopes that follow from them."""

    settings: Settings | None
    options: Options
    envelope: dict[str, Any]
    declared_key: DeclaredKey | None


class HasOptions:
    """A job by its name, with the options that it was given. It is immutable apart from the resolved options."""

    def __init__(self, name: str, given: dict[str, Any], read_settings: Callable[[], Settings]) -> None:
        self.name = name
        self._read_settings = read_settings
        self._with(given)

    @property
    def queue(self) -> str:
        """The queue to which calls are sent."""
        return self._current().options.queue

    @property
    def key(self) -> str | None:
        """The key of its calls, or the template from which it is made; None if they have none."""
        key = self._given.get("key")
        return str(key) if key else None

    def _renewed(self, envelope: Envelope) -> Envelope:
        """Return the envelope of a call with the options that the current settings give it."""
        resolved = self._current()
        key = {} if envelope.key_text is None else resolved.options.key_fields(self.name, envelope.key_text)
        return Envelope(id=envelope.id, job=envelope.job, payload=envelope.payload, **{**resolved.envelope, **key})

    def _with(self, given: dict[str, Any]) -> None:
        self._given = given
        self._resolved = UNRESOLVED

    def _current(self) -> Resolved:
        settings = self._read_settings()
        return self._resolved if self._resolved.settings is settings else self._resolve(settings)

    def _resolve(self, settings: Settings) -> Resolved:
        """Compute the options under these settings. They are kept until the settings change."""
        options = Options(**{**settings.defaults.options, **self._given})
        declared_key = None if isinstance(options.key, str) else options.key
        self._resolved = resolved = Resolved(settings, options, options.envelope_fields(self.name), declared_key)
        return resolved

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


UNRESOLVED: Final = Resolved(None, Options(), {}, None)
