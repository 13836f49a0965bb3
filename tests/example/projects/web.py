from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, Request, Response

from taskflow import configure, enqueue, operate, worker_lifespan

from .hooks import Hooks, request_id
from .tasks import Site, fetch_page, sync_project

DEBOUNCE = 2.0

router = APIRouter()


@dataclass
class Import:
    urls: list[str]
    after: float = 0


@router.post("/projects/{project_id}/changes", status_code=202)
async def change(project_id: int, revision: str) -> dict[str, str]:
    handle = await sync_project.options(after=DEBOUNCE).delay(project_id, revision)
    return {"id": handle.id}


@router.post("/imports", status_code=202)
async def start_import(wanted: Import) -> dict[str, str]:
    import_id = uuid.uuid4().hex
    tagged = fetch_page.options(tags=(f"import:{import_id}",), after=wanted.after)
    await enqueue(tagged.bind(url) for url in wanted.urls)
    return {"id": import_id}


@router.get("/imports/{import_id}")
async def show_import(import_id: str) -> dict[str, int]:
    return Counter([info.status.value async for info in operate.jobs(tag=f"import:{import_id}")])


@router.delete("/imports/{import_id}", status_code=204)
async def cancel_import(import_id: str) -> None:
    await operate.cancel(tag=f"import:{import_id}")


async def with_request_id(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request_id.set(request.headers.get("X-Request-Id", ""))
    return await call_next(request)


def create_app(site: Site, hooks: Hooks) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Site]]:
        yield {"site": site}

    configure(middleware=[hooks])
    app = FastAPI(lifespan=worker_lifespan(own=lifespan, concurrency=20))
    app.include_router(router)
    app.middleware("http")(with_request_id)
    return app
