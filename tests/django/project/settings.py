"""The settings of a project whose tests Django's own runner runs: see tests/django/test_project.py."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.django.project.names import HAS_TASKS_OF_DJANGO

BACKEND = "taskflow.django.TaskflowBackend"
DATABASE: dict[str, Any] = json.loads(os.environ["PROJECT_DATABASE"])

DATABASES = {"default": DATABASE}
INSTALLED_APPS = ["taskflow.django", *([] if HAS_TASKS_OF_DJANGO else ["django_tasks"]), "tests.django.project"]
TASKS: dict[str, Any] = {"default": {"BACKEND": BACKEND, "QUEUES": ["default", "queue_1"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
