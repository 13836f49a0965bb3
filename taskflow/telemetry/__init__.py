"""Telemetry: metrics for Prometheus, traces and metrics for OpenTelemetry, errors for Sentry, and a history in the store."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from taskflow.app.middleware import Telemetry as Telemetry
from taskflow.model.errors import DriverMissing
from taskflow.model.measures import Measure as Measure, MeasuresRecord as MeasuresRecord

if TYPE_CHECKING:
    from taskflow.telemetry.opentelemetry import OpenTelemetry as OpenTelemetry
    from taskflow.telemetry.prometheus import Prometheus as Prometheus
    from taskflow.telemetry.sentry import Sentry as Sentry

__all__ = ["History", "Measure", "MeasuresRecord", "OpenTelemetry", "Prometheus", "Sentry", "Telemetry"]


class History(Telemetry):
    """Records in the store how long jobs waited and ran, by queue and job: by the minute for 3 hours, by ten minutes for 2 days, and by
    the hour for 30 days. Read it with `operate.history()`. A worker adds one small record a minute if it has run jobs. If it is killed, the
    counts of up to a minute are lost."""

    counts_runs = True
    records_history = True


_LATER: Final = {"OpenTelemetry": ("opentelemetry", "otel"), "Prometheus": ("prometheus", "prometheus"), "Sentry": ("sentry", "sentry")}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _LATER[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise DriverMissing(f"taskflow.telemetry.{name} needs {error.name}: install the extra {extra!r}") from error
