"""Digests of the current version's SQL, pinned in digest.txt. `python -m tests.stores.postgres.digest` writes that file again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from taskflow.broker.postgres import sql_files
from taskflow.broker.postgres.schema import VERSION

FILE: Final = Path(__file__).with_name("digest.txt")
COMMAND: Final = "python -m tests.stores.postgres.digest"


def digests() -> dict[str, str]:
    """Return the digests by part: the version, the tables, and all functions together. They cover the text that the server gets, including
    rules and words."""
    functions = "".join(map(_rendered, sql_files.functions()))
    return {"version": str(VERSION), "tables": _digest(_rendered(sql_files.tables())), "functions": _digest(functions)}


def pinned() -> dict[str, str]:
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return {part: digest for part, _, digest in (line.partition(" ") for line in lines)}


def _rendered(text: str) -> str:
    return sql_files.filled(text, "taskflow")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    FILE.write_text("".join(f"{part} {digest}\n" for part, digest in digests().items()))
    print(f"{FILE.name} is written: version {VERSION}")
