from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from django.db import connections, transaction

from taskflow import job, preset

from .models import Document, IndexEntry
from .tenants import current_tenant

P = ParamSpec("P")
R = TypeVar("R")


def close_old_connections() -> None:
    """Like Django's function of this name, but leave the transaction of a test alone, in which a job runs inline."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def with_database(function: Callable[P, R]) -> Callable[P, R]:
    """Close the connections of the worker's thread that have become old, as Django does around each request."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    return run


of_document = preset(queue="documents", key_scope="name")


@of_document(name="documents.reindex", key="{document_id}", on_conflict="replace")
@with_database
def reindex(document_id: int) -> int:
    """Several saves before it runs are one job. A save while it runs is another one, which starts afterwards."""
    document = Document.objects.get(pk=document_id)
    words = sorted(set(document.text.lower().split()))
    IndexEntry.objects.update_or_create(document=document, defaults={"words": words, "tenant": current_tenant.get()})
    return len(words)


@job(name="documents.record_problem")
@with_database
def record_problem(document_id: int) -> None:
    Document.objects.filter(pk=document_id).update(problem="the file cannot be read")


@of_document(name="documents.consume", key="{document_id}")
@with_database
def consume(document_id: int, path: Path) -> None:
    text = path.read_text()
    with transaction.atomic():
        document = Document.objects.get(pk=document_id)
        document.text = text
        document.save()
