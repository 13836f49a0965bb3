"""Namespaces of a test's own, where this machine lets us make them: a container without privileges does not."""

from __future__ import annotations

import subprocess
from functools import cache


@cache
def unshare_flags(*namespaces: str) -> str | None:
    """The flags by which `unshare` makes these namespaces ("--pid --fork", "--mount"), as root or in a user namespace.

    Returns None where neither works: there is no such program, or the kernel refuses (a container, a chroot).
    """
    for flags in (" ".join(namespaces), " ".join(("--user --map-root-user", *namespaces))):
        try:
            if subprocess.run(["unshare", *flags.split(), "true"], capture_output=True, check=False).returncode == 0:
                return flags
        except OSError:
            return None
    return None
