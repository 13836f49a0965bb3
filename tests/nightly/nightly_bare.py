"""The README's two commands on a bare machine: Debian's minimal system with Python, nothing else, as each kind of user.

Needs root, debootstrap and Debian's mirror. The commands run on a clone of the last commit, in namespaces that take all processes and
mounts with them when they end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = "python3,python3-venv,ca-certificates"
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")

DOCKER: Final = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+setfcap"
"""The capabilities that Docker gives a container by default (its documentation, "Runtime privilege and Linux capabilities")."""

ENTER: Final = """
set -eu
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs tmpfs dev
for device in null zero full random urandom tty; do
    mknod -m 666 "dev/$device" c $((0x$(stat -c %t "/dev/$device"))) $((0x$(stat -c %T "/dev/$device")))
done
mkdir -m 755 dev/pts && mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts && ln -s pts/ptmx dev/ptmx
mkdir -m 1777 dev/shm && mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s /proc/self/fd dev/fd
shift
exec "$@"
"""
"""A shell script: mounts in a root folder what programs expect there, and executes a command. Run in a mount and a PID namespace."""


@dataclass(frozen=True)
class Place:
    """Where a clone is, and how the two commands are run on it."""

    name: str
    user: str
    home: str
    privileges: tuple[str, ...] = ()
    """Arguments of setpriv."""


PLACES: Final = (
    Place("root in /root", "root", "/root"),
    Place("a user in their home", "alice", "/home/alice"),
    Place("a container without privileges", "root", "/srv", (f"--bounding-set=-all,{DOCKER}", "--no-new-privs")),
)


@pytest.fixture(scope="session")
def minimal_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.fail("a bare machine is made by root with debootstrap: apt-get install debootstrap")
    folder = tmp_path_factory.mktemp("bare") / "minimal"
    release = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    assert release is not None
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release[1], folder], check=True)
    shutil.copy("/etc/resolv.conf", folder / "etc")
    shutil.copy(CERTIFICATES, folder / str(CERTIFICATES)[1:])  # of a network whose proxies have certificates of their own
    return folder


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def bare(request: pytest.FixtureRequest, minimal_system: Path) -> Iterator[tuple[Place, Path]]:
    """Each place in turn, with the root folder of its machine."""
    place: Place = request.param
    machine = minimal_system.with_name(f"machine-{PLACES.index(place)}")
    subprocess.run(["cp", "-a", minimal_system, machine], check=True)
    home = machine / place.home[1:]
    if place.user != "root":
        subprocess.run(["chroot", machine, "useradd", "--create-home", place.user], check=True)
        home.chmod(0o700)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, home / "taskflow"], check=True)
    subprocess.run(["chroot", machine, "chown", "-R", f"{place.user}:", f"{place.home}/taskflow"], check=True)
    try:
        yield place, machine
    finally:
        shutil.rmtree(machine)


def test_the_two_commands(bare: tuple[Place, Path]) -> None:
    place, machine = bare
    demo, tests = re.findall(r"```bash\n(.+?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)[:2]
    for command in (demo, tests):
        assert run(place, machine, command) == 0, f"{place.name}: {command}"


def run(place: Place, machine: Path, command: str) -> int:
    """Return the exit code of a command in the clone. Its output goes to ours."""
    environment = {
        "HOME": place.home,
        "USER": place.user,
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or name == "PIP_DEFAULT_TIMEOUT"},
    }
    identity = ["setpriv", f"--reuid={place.user}", f"--regid={place.user}", "--init-groups", *place.privileges]
    script = f"cd {place.home}/taskflow && {command}"
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "enter", str(machine)]
    return subprocess.run([*namespaces, "chroot", machine, *identity, "sh", "-c", script], env=environment, check=False).returncode
