"""The URLs of a project that includes the dashboard."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [path("ops/jobs/", include("taskflow.django.urls"))]
