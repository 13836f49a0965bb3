"""The stored cause of a job's failure: the deploy, and a fingerprint of the failure that ignores ids and numbers in the message."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any, Final

from taskflow.model import wording
from taskflow.model.verdict import Completed, Discarded, Failed, Verdict

FINGERPRINT_BYTES: Final = 8

UNKNOWN: Final = bytes(FINGERPRINT_BYTES)
"""The fingerprint of a failed job that has no valid cause, because another program has changed its stored fields."""

POISON: Final = bytes.fromhex("e33c699416c01f47")
"""The fingerprint of a poison job whose last worker died of an unknown cause, as `poison_fingerprint` computes it."""

MAX_DEPLOY: Final = 100


def pack_cause(fingerprint: bytes, deploy: str) -> bytes:
    """Return the fingerprint followed by the deploy. Causes with the same fingerprint are adjacent in an index."""
    return fingerprint + deploy[:MAX_DEPLOY].encode(errors="replace")


def fingerprint_in(cause: Any) -> bytes:
    """Return the fingerprint in a stored cause, which may be any value, or `UNKNOWN` if it has none."""
    return cause[:FINGERPRINT_BYTES] if isinstance(cause, bytes) and len(cause) >= FINGERPRINT_BYTES else UNKNOWN


def deploy_in(cause: Any) -> str:
    """Return the deploy in a stored cause, which may be any value. The deploy is empty if none was set or the cause has none."""
    return cause[FINGERPRINT_BYTES:].decode(errors="replace") if isinstance(cause, bytes) else ""


_FRAME: Final = re.compile(r'^ *(?:\| +)?File "(?P<file>[^"\n]*)", line \d+, in (?P<function>.*)$', re.MULTILINE)
_LIBRARIES: Final = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python\d[^/\\]*)[/\\]|^<")

_VARYING: Final = (
    (re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`"), "'...'"),
    (re.compile(r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"), "ID"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=\w*\d)[0-9a-fA-F]{6,}\b"), "ID"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "N"),
    (re.compile(r"\s+"), " "),
)
"""Patterns for the parts that vary between messages with the same cause, each with its placeholder."""

MAX_CHARACTERS: Final = 300
"""Only this many characters of a message count, because the rest is mostly data."""


def cause_of(verdict: Verdict, deploy: str) -> bytes | None:
    """Return the cause to store with a job that the verdict ends as FAILED, or None if the verdict has another effect."""
    if isinstance(verdict, Completed):
        verdict = verdict.otherwise
    if isinstance(verdict, Failed):
        error = verdict.error
        return pack_cause(fingerprint(error.message, error.type, error.traceback), deploy)
    return pack_cause(fingerprint(verdict.reason), deploy) if isinstance(verdict, Discarded) else None


def poison_fingerprint(died_of: str = "") -> bytes:
    """Return the fingerprint of jobs that are poison. `died_of` says why the last worker died; it is empty if that is unknown."""
    return fingerprint(wording.poison(1, died_of))


@lru_cache(maxsize=64)
def fingerprint(message: str, kind: str = "", traceback: str = "") -> bytes:
    """Return the fingerprint of a failure: a hash of the exception's type, the innermost frame of the application, and the message
    without quoted text, ids and numbers. Of the frame, only the file and function are used, so edits elsewhere in the file and new
    release folders don't change the hash. For a job that discarded itself, and for poison, only the reason is used."""
    parts = (kind, frame(traceback), shape(message))
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).digest()[:FINGERPRINT_BYTES]


def frame(traceback: str) -> str:
    """Return the innermost frame outside libraries, or the innermost of all if there is none, as "folder/file.py:function", or "" if the
    traceback has no frames. For an exception group, use the group's last exception."""
    frames = [(found["file"], found["function"]) for found in _FRAME.finditer(traceback)]
    own = [place for place in frames if not _LIBRARIES.search(place[0])]
    if not frames:
        return ""
    file, function = (own or frames)[-1]
    module = "/".join(re.split(r"[/\\]", file)[-2:])
    return f"{module}:{function}"


def shape(message: str) -> str:
    """Return the beginning of a message, with placeholders for its variable parts: quoted text, ids and numbers."""
    text = message[:MAX_CHARACTERS]
    for varying, stands_for in _VARYING:
        text = varying.sub(stands_for, text)
    return text.strip()
