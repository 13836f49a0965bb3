"""Runs the `taskflow` command as `python -m taskflow`."""

from taskflow.cli.main import program

if __name__ == "__main__":
    raise SystemExit(program())
