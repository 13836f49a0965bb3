"""The URLs of the dashboard, for staff users: ``path("jobs/", include("taskflow.django.urls"))``."""

from __future__ import annotations

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt

from taskflow.dashboard import Access
from taskflow.dashboard.rendering import API, FRAGMENT
from taskflow.dashboard.wsgi import GIVEN, answer_of, application, scope_of

_application = application()


# The dashboard accepts writes only from the same origin, so its forms need no CSRF token.
@csrf_exempt
def dashboard(request: HttpRequest, path: str) -> HttpResponse:
    """Serve the dashboard. Anonymous users who open a page are redirected to `LOGIN_URL`; their other requests are refused."""
    user = request.user
    is_for_program = FRAGMENT in request.headers or f"/{path}".startswith(f"{API}/")
    if not user.is_authenticated and request.method == "GET" and not is_for_program:
        return redirect_to_login(request.get_full_path())
    scope = scope_of(
        request.method,
        request.path.removesuffix(path).rstrip("/"),
        request.path,
        request.META.get("QUERY_STRING", ""),
        request.headers,
        scheme=request.scheme,
        server=None,
    )
    if user.is_active and user.is_staff:
        scope[GIVEN] = Access(user.get_username(), user.has_perm("taskflow.act"), user.has_perm("taskflow.see_arguments"))
    status, headers, content = answer_of(_application, scope, request.body)
    response = HttpResponse(content, status=status)
    del response.headers["Content-Type"]
    for name, value in headers:
        response.headers[name] = value
    return response


urlpatterns = [re_path("^(?P<path>.*)$", dashboard, name="taskflow-dashboard")]
