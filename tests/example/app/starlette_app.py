"""On Starlette: `uvicorn app.starlette_app:app`"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from taskflow import worker_lifespan

from .registration import lifespan, progress_of, register


async def post_register(request: Request) -> JSONResponse:
    body = await request.json()
    if not isinstance(body, dict) or not isinstance(body.get("email"), str):
        return JSONResponse({"error": "email is missing"}, 422)
    return JSONResponse({"job_id": await register(body["email"]), "app": request.state.name}, 202)


async def get_job(request: Request) -> JSONResponse:
    progress = await progress_of(request.path_params["job_id"])
    return JSONResponse(progress, 404 if progress is None else 200)


app = Starlette(
    routes=[Route("/register", post_register, methods=["POST"]), Route("/jobs/{job_id}", get_job)],
    lifespan=worker_lifespan(own=lifespan, concurrency=50),
)
