"""Sets up Django with the settings that DJANGO_SETTINGS_MODULE names. Workers and their child processes import this module first."""

from __future__ import annotations

import django
from django.apps import apps

if not apps.ready:
    django.setup()
