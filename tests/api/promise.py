"""Reads the promise (text, not Markdown by name: a formatter would tidy its blocks), and what of it stands in modules between markers."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
FACE: Final = (HERE / "face.txt").read_text()


def sections() -> dict[int, str]:
    return {int(found[1]): found[0] for found in re.finditer(r"^## (\d+)\..*?(?=^## |\Z)", FACE, re.MULTILINE | re.DOTALL)}


def blocks() -> dict[str, str]:
    """Every block of code by its name: the section's number and its own within it."""
    found: dict[str, str] = {}
    for number, text in sections().items():
        for count, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL), start=1):
            found[f"{number}.{count}"] = block.strip("\n")
    return found


def written(module: str) -> dict[str, str]:
    """The blocks in a module of this folder, between their markers, as they would stand at the left margin."""
    text = (HERE / module).read_text()
    found = re.findall(r"^ *# block (\d+\.\d)\n(.*?)^ *# end of block$", text, re.MULTILINE | re.DOTALL)
    return {name: textwrap.dedent(body).strip("\n") for name, body in found}


def commands(section: int) -> list[str]:
    """The lines of its blocks for a shell."""
    blocks: list[str] = re.findall(r"^```\n(.*?)^```", sections()[section], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def spans(section: int) -> list[str]:
    """Code in the running text of a section."""
    prose = re.sub(r"^```.*?^```", "", sections()[section], flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)
