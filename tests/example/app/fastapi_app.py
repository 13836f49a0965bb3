"""On FastAPI: `uvicorn app.fastapi_app:app`"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from taskflow import worker_lifespan

from .registration import lifespan, progress_of, register

app = FastAPI(lifespan=worker_lifespan(own=lifespan, concurrency=50))


@dataclass
class Registration:
    email: str


@app.post("/register", status_code=202)
async def post_register(registration: Registration, request: Request) -> dict[str, str]:
    return {"job_id": await register(registration.email), "app": request.state.name}


@app.get("/jobs/{job_id}")
async def get_job(job_id: str) -> dict[str, Any]:
    progress = await progress_of(job_id)
    if progress is None:
        raise HTTPException(404)
    return progress
