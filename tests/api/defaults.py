# ruff: noqa: E501  # the block stands as it was promised
"""Importing this module configures the application: `test_face` does so where that is undone."""

from __future__ import annotations

from pathlib import Path

from taskflow import configure, preset

# fmt: off
# block 1.2
configure(defaults={"max_attempts": 3, "timeout": 1800})                 # for every job that says nothing else
io = preset(queue="io", max_attempts=1)                                  # typed; @io or @io(name="...")

@io(key="{project_id}", key_scope="name")                                # declared key: formatted from arguments, checked at decoration; scope "queue" (default) or "name"
async def sync_project(project_id: int, path: Path) -> None: ...
# end of block
