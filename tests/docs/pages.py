"""The pages that users read, and their blocks of code."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = [README, *sorted(page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "project")]
"""All but those of `docs/project`, each of which only includes a file from outside `docs`."""

SCRIPT: Final = "page.py"
"""The file of all blocks of a page that name none."""

_FILE: Final = re.compile(r"# ((?:\w+/)*\w+\.py)\n")
"""The first line of a block that belongs into this file, which other blocks of the page can import."""

_FENCE: Final = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `line` is the number of its first line of code in the page."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page, or only those in these languages."""
    text = page.read_text()
    found = [
        Block(page, fence[2].strip(), textwrap.dedent(fence[3]), text.count("\n", 0, fence.start(3)) + 1) for fence in _FENCE.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, *languages)]


def files_of(parts: Sequence[Block]) -> dict[str, str]:
    """Return the files that blocks of a page make. Each line has the number that it has in the page: a traceback leads there."""
    files: dict[str, str] = {}
    for block in parts:
        name = found[1] if (found := _FILE.match(block.text)) else SCRIPT
        text = files.setdefault(name, "")
        files[name] += "\n" * (block.line - 1 - text.count("\n")) + block.text
    return files


def write(files: Mapping[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
