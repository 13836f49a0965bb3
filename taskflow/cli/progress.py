"""Shows progress: as a bar on a terminal, otherwise as an occasional line."""

from __future__ import annotations

import sys
import time

WIDTH = 40


class Bar:
    def __init__(self, total: int) -> None:
        self.total = total
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._shown = -1

    def show(self, done: int) -> None:
        share = done / self.total if self.total else 1.0
        if not self._is_terminal:
            tenth = int(share * 10)
            if tenth != self._shown:
                self._shown = tenth
                print(f"{done:,} of {self.total:,} done", flush=True)
            return
        filled = int(share * WIDTH)
        rate = done / max(1e-9, time.monotonic() - self._began)
        print(f"\r[{'#' * filled}{'.' * (WIDTH - filled)}] {done:,}/{self.total:,}  {rate:,.0f} jobs/s ", end="", flush=True)

    def close(self) -> None:
        if self._is_terminal:
            print()
