from __future__ import annotations

from typing import Any

from django.db import connection
from django.db.models.signals import post_save
from django.dispatch import receiver

from .models import Document
from .tasks import reindex


@receiver(post_save, sender=Document)
def document_saved(instance: Document, **_: Any) -> None:
    """The job exists if and only if the save commits."""
    reindex.options(connection=connection).delay_sync(instance.pk)
