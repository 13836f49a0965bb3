from __future__ import annotations

from django.db import models


class Tenant(models.Model):
    name = models.TextField()


class Member(models.Model):
    name = models.TextField(unique=True)
    tenant = models.ForeignKey(Tenant, models.CASCADE)


class Document(models.Model):
    title = models.TextField()
    text = models.TextField(default="")
    problem = models.TextField(default="")


class IndexEntry(models.Model):
    document = models.OneToOneField(Document, models.CASCADE, related_name="entry")
    words = models.JSONField()
    tenant = models.TextField()
