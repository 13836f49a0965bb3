"""The dashboard: jobs, queues, workers and schedules in a browser. It is an ASGI or WSGI application, and needs the extra `dashboard`."""

from __future__ import annotations

from taskflow.model.errors import DriverMissing

try:
    from taskflow.dashboard.application import dashboard as dashboard
    from taskflow.dashboard.guard import Access as Access
    from taskflow.dashboard.wsgi import dashboard_wsgi as dashboard_wsgi
except ImportError as error:
    raise DriverMissing(f"taskflow.dashboard needs {error.name}: install the extra 'dashboard'") from error

__all__ = ["Access", "dashboard", "dashboard_wsgi"]
