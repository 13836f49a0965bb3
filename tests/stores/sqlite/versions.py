"""A version of the tables that comes after the present one: a test makes it, and lets a broker in this or another process know it."""

from __future__ import annotations

import shutil
from pathlib import Path

from taskflow.broker.sqlite import migrations

PRESENT = migrations.MIGRATIONS.newest
FUTURE = PRESENT + 1

DESCRIPTION = "A column that says who sent a job."

_CHANGE = f"""-- {FUTURE}: {DESCRIPTION}
ALTER TABLE "~jobs" ADD COLUMN sender TEXT; -- none for jobs of before; a comment may have a semicolon
CREATE TRIGGER "~jobs_sender" AFTER INSERT ON "~jobs" BEGIN
  UPDATE "~jobs" SET sender = 'nobody' WHERE seq = new.seq;
END;
UPDATE "~jobs" SET sender = 'long ago';
"""

BECOME = (
    "import sys, pathlib; from taskflow.broker.sqlite import migrations; "
    "migrations.MIGRATIONS = migrations.Migrations(pathlib.Path(sys.argv[2]))\n"
)
"""The first line of a script that knows the future version; its second argument is the folder."""


def make_future(folder: Path, change: str = _CHANGE) -> Path:
    """Return a folder with the migrations of today, and one more."""
    shutil.copytree(migrations.MIGRATIONS.folder, folder)
    (folder / f"{FUTURE}.sql").write_text(change)
    return folder
