from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings

from taskflow import configure


class DocumentsConfig(AppConfig):
    name = "tests.example.documents"
    label = "documents"

    def ready(self) -> None:
        from . import signals as signals
        from .tenants import Tenants

        configure(broker=f"sqlite:///{settings.DATABASE}?shared=1", middleware=[Tenants()], defaults={"max_attempts": 1})
