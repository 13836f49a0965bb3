from __future__ import annotations

from pathlib import Path

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path

from .models import Document
from .tasks import consume, record_problem


@transaction.atomic
def documents(request: HttpRequest) -> JsonResponse:
    document = Document.objects.create(title=request.POST["title"], text=request.POST.get("text", ""))
    if "file" in request.POST:
        watched = consume.options(connection=connection, on_failure=record_problem.bind(document.pk))
        watched.delay_sync(document.pk, Path(request.POST["file"]))
    return JsonResponse({"id": document.pk}, status=201)


@transaction.atomic
def document(request: HttpRequest, pk: int) -> JsonResponse:
    found = get_object_or_404(Document, pk=pk)
    if request.method == "POST":
        found.text = request.POST["text"]
        found.save()
    entry = getattr(found, "entry", None)
    return JsonResponse({"words": entry and entry.words, "tenant": entry and entry.tenant, "problem": found.problem})


urlpatterns = [path("documents", documents), path("documents/<int:pk>", document)]
