"""Sets Django up, as DJANGO_SETTINGS_MODULE says. Workers and their child processes import this module before the application's."""

from __future__ import annotations

import django
from django.apps import apps

if not apps.ready:
    django.setup()
