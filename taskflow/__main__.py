"""`python -m taskflow` is the command `taskflow`."""

from taskflow.cli.main import program

if __name__ == "__main__":
    raise SystemExit(program())
