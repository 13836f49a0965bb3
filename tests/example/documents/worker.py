"""What the worker imports: `taskflow worker tests.example.documents.worker`."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.example.documents.settings")
django.setup()
