"""The settings of the project. The jobs lie in the same SQLite file as the tables."""

from __future__ import annotations

import os

DATABASE = os.environ.get("DOCUMENTS_DATABASE", "documents.db")

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        "TEST": {"NAME": DATABASE},
    }
}
INSTALLED_APPS = ["tests.example.documents.apps.DocumentsConfig"]
MIDDLEWARE = ["tests.example.documents.tenants.with_member"]
ROOT_URLCONF = "tests.example.documents.views"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ATOMIC_REQUESTS = True
USE_TZ = True
