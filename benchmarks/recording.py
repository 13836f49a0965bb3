"""Record the README's terminal session: ``python -m benchmarks.recording`` writes `docs/recording.svg`.

A worker is killed in the middle of a job, and another one runs the job again. The commands are real; pauses are shortened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

PICTURE: Final = Path(__file__).parents[1] / "docs/recording.svg"

TASKS: Final = """\
import asyncio

from taskflow import JobContext, job


@job
async def import_orders(ctx: JobContext, month: str) -> str:
    for step in range(1, 6):
        await ctx.progress(step / 5, f"step {step} of 5")
        await asyncio.sleep(1)
    return f"{month} imported"
"""

SEND: Final = "from app.tasks import *; print(import_orders.delay_sync('2026-11').id)"

MAX_PAUSE: Final = 1.2
"""Maximum seconds between two lines of the picture."""

STAY: Final = 8.0
"""Seconds for which the whole session stays visible."""

WIDTH, LINE_HEIGHT, LEFT, TOP = 900, 19, 18, 44


class Line(NamedTuple):
    at: float
    text: str
    is_typed: bool = False


class Session:
    """Runs commands in a folder, and records what they print and when."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began = time.monotonic()
        self.lines: list[Line] = []
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": ".", "TASKFLOW_BROKER": "sqlite:///queue.db"}

    def type(self, text: str) -> None:
        self.lines.append(Line(time.monotonic() - self._began, f"$ {text}", is_typed=True))

    def run(self, command: str, shown: str | None = None, keep: tuple[str, ...] = ()) -> str:
        """Run a command, and return its output. `keep` lists the prefixes of the lines to show; if empty, all lines are shown."""
        self.type(shown or command)
        ran = subprocess.run(["bash", "-c", command], cwd=self._folder, env=self._environment, capture_output=True, text=True, check=True)
        for line in ran.stdout.splitlines():
            if not keep or line.strip().startswith(keep):
                self.lines.append(Line(time.monotonic() - self._began, line))
        return ran.stdout.strip()

    def start(self, command: str) -> subprocess.Popen[str]:
        self.type(f"{command} &")
        return subprocess.Popen(command.split(), cwd=self._folder, env=self._environment, stderr=subprocess.DEVNULL, text=True)


def record(folder: Path) -> list[Line]:
    (folder / "app").mkdir()
    (folder / "app/tasks.py").write_text(TASKS)
    session = Session(folder)
    job_id = session.run(f'python -c "{SEND}"', shown="python -c \"... import_orders.delay_sync('2026-11')\"")
    first = session.start("taskflow worker app.tasks")
    time.sleep(3.5)
    session.run(f"taskflow explain {job_id}")
    session.type(f"kill -9 {first.pid}")
    first.kill()
    first.wait()
    second = session.start("taskflow worker app.tasks")
    time.sleep(12)
    session.run(f"taskflow explain {job_id}")
    time.sleep(16)
    session.run(f"taskflow jobs {job_id}", keep=("status", "result", "timeline", "20", "0", "1"))
    second.terminate()
    second.wait()
    return session.lines


def drawn(lines: list[Line]) -> str:
    """Return an SVG in which each line appears at its time. The animation repeats. The first line is always there, because a page that has
    just opened would show an empty terminal."""
    at, times = 0.5, []
    for before, line in zip([lines[0], *lines], lines, strict=False):
        at += min(line.at - before.at, MAX_PAUSE)
        times.append(at)
    lasts = at + STAY
    height = TOP + LINE_HEIGHT * len(lines) + 12
    styles, texts = [], []
    for number, (line, appears) in enumerate(zip(lines, times, strict=True)):
        percent = 100 * appears / lasts
        hidden = f"0%,{percent:.2f}%{{opacity:0}}" if number else ""
        styles.append(f"@keyframes l{number}{{{hidden}{percent + 0.01:.2f}%,100%{{opacity:1}}}}")
        kind = "typed" if line.is_typed else "said"
        texts.append(
            f'<text class="{kind}" x="{LEFT}" y="{TOP + LINE_HEIGHT * number}" xml:space="preserve" '
            f'style="animation:l{number} {lasts:.1f}s linear infinite">{escape(line.text[:104])}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{LABEL}">',
            "<style>text{font:13.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d6deeb}.typed{fill:#7fdbca}",
            *styles,
            "@media(prefers-reduced-motion:reduce){text{animation:none!important}}</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#0b1622"/>',
            *(f'<circle cx="{18 + 18 * n}" cy="16" r="5" fill="{fill}"/>' for n, fill in enumerate(("#ff5f57", "#febc2e", "#28c840"))),
            *texts,
            "</svg>\n",
        ]
    )


LABEL: Final = "A worker is killed in the middle of a job; taskflow explain says where the job is; another worker runs it again."


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = record(Path(folder))
    PICTURE.write_text(drawn(lines))
    print(*(line.text for line in lines), sep="\n")


if __name__ == "__main__":
    main()
