"""Kernel namespaces for a test, if this machine allows them: a container without privileges does not."""

from __future__ import annotations

import subprocess
from functools import cache


@cache
def unshare_flags(*namespaces: str) -> str | None:
    """Return the flags with which `unshare` creates these namespaces ("--pid --fork", "--mount"), as root or in a user namespace.

    Returns None if neither works, because the program is missing or the kernel refuses (a container, a chroot).
    """
    for flags in (" ".join(namespaces), " ".join(("--user --map-root-user", *namespaces))):
        try:
            if subprocess.run(["unshare", *flags.split(), "true"], capture_output=True, check=False).returncode == 0:
                return flags
        except OSError:
            return None
    return None
