from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from taskflow import Backoff, JobContext, job


@dataclass
class Site:
    """The service outside that jobs ask. The lifespan of the application makes it."""

    broken: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)

    async def get(self, url: str) -> str:
        self.asked[url] += 1
        if url in self.broken:
            raise ConnectionError(f"{url} does not answer")
        return f"the text of {url}"


@job(name="projects.sync", key="{project_id}", on_conflict="replace", key_scope="name")
async def sync_project(ctx: JobContext, project_id: int, revision: str) -> str:
    """Each change replaces the call that waits, so a burst of changes is one sync, of the last revision."""
    site: Site = ctx.state["site"]
    return await site.get(f"/projects/{project_id}/{revision}")


@job(name="projects.fetch_page", queue="imports", max_attempts=2, retry=Backoff(base=0.01), retry_on=(ConnectionError,))
async def fetch_page(ctx: JobContext, url: str) -> int:
    site: Site = ctx.state["site"]
    return len(await site.get(url))
