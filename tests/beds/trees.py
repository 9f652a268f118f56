"""Root trees of Debian, made by mmdebstrap and cached by their contents."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from shlex import quote

from tests.beds import cache
from tests.beds.machine import BedError

DEFAULT_MIRROR = "http://deb.debian.org/debian"
# The Debian release of every bed that does not specify one: bookworm, trixie or sid. `make test-releases` sets it.
RELEASE = os.environ.get("VLLM_SAFE_RELEASE", "bookworm")
PATIENCE = (10, 60)  # seconds between the attempts to make a tree: sid's mirror is sometimes in the middle of an update

BASE = (
    "ca-certificates",
    "curl",
    "dbus",
    "earlyoom",
    "iproute2",
    "less",
    "openssh-server",
    "procps",
    "python3",
    "python3-venv",
    "systemd-sysv",
    "util-linux",
)
COMPILER = ("gcc", "libc6-dev", "libnuma1", "python3-dev")  # what vLLM's CPU build needs to serve
# The packages with which a Debian developer builds and checks a package.
DEVELOPER = ("autopkgtest", "build-essential", "debhelper", "dh-virtualenv", "lintian", "piuparts", "python3-pytest")
# For an emulated machine: the stock kernel, since the cloud kernel has no 9p, and the file systems on which a swapfile may be.
MACHINE = ("btrfs-progs", "dosfstools", "e2fsprogs", "kmod", "linux-image-amd64", "qemu-guest-agent", "xfsprogs")


@dataclass(frozen=True)
class Recipe:
    """The contents of a tree. Two equal recipes share one tree."""

    packages: tuple[str, ...]
    suite: str = RELEASE
    hooks: tuple[str, ...] = ()  # shell commands that run before the packages are installed, with the tree as $1


CONTAINER = Recipe((*BASE, *COMPILER, "python3-aiohttp"))  # the gateway's, which apt installs along with vllm-safe
WITH_WIREGUARD = Recipe((*BASE, *COMPILER, "sudo", "wireguard-go", "wireguard-tools"))  # wireguard-go: for a kernel without WireGuard
DEVELOPMENT = Recipe((*BASE, *DEVELOPER))
# An emulated CPU takes many seconds to unpack the usual initrd of 60 MB, and for udev in it. This one has only what the disk needs, and in
# place of the scripts that start and end udev two that do not; the second hands /dev over, as Debian's does.
NO_UDEV = "#!/bin/sh\n"
HAND_OVER = '#!/bin/sh\n[ "$1" = prereqs ] || mount -n -o move /dev "$rootmnt/dev"\n'
SMALL_INITRD = (
    'cd "$1" && mkdir -p etc/initramfs-tools/conf.d etc/initramfs-tools/scripts/init-top etc/initramfs-tools/scripts/init-bottom',
    'mkdir -p "$1"/usr/share/initramfs-tools/modules.d',
    'echo MODULES=list > "$1"/etc/initramfs-tools/conf.d/bed',
    'for module in virtio_pci virtio_blk ext4; do echo $module; done > "$1"/usr/share/initramfs-tools/modules.d/bed',
    f'cd "$1"/etc/initramfs-tools/scripts && printf %s {quote(NO_UDEV)} > init-top/udev && chmod +x init-top/udev',
    f'cd "$1"/etc/initramfs-tools/scripts && printf %s {quote(HAND_OVER)} > init-bottom/udev && chmod +x init-bottom/udev',
)
VIRTUAL = Recipe((*BASE, *MACHINE), hooks=SMALL_INITRD)


def tree(recipe: Recipe) -> Path:
    """Return the root tree of `recipe`, which must not be written. It is made in half a minute when it is not cached.

    A tree of sid is used for a week. Raises BedError when the tree cannot be made; mmdebstrap's errors are on stderr before it.
    """
    week = time.strftime("-%G.%V", time.gmtime()) if recipe.suite == "sid" else ""
    return cache.cached("trees", f"{recipe.suite}{week}-{_digest(recipe)}", lambda folder: _make(recipe, folder))


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(repr(astuple(recipe)).encode()).hexdigest()[:12]


def _make(recipe: Recipe, folder: Path) -> None:
    mirror = host_mirror()
    for pause in (*PATIENCE, None):
        if _bootstrap(recipe, folder, mirror):
            folder.chmod(0o755)
            return
        if pause is not None:
            for left in folder.iterdir():
                shutil.rmtree(left)
            sys.stderr.write(f"no tree of {recipe.suite} from {mirror}; again in {pause} s\n")
            time.sleep(pause)
    raise BedError(f"no tree of {recipe.suite} can be made from the mirror {mirror}, tried {len(PATIENCE) + 1} times: see mmdebstrap above")


def _bootstrap(recipe: Recipe, folder: Path, mirror: str) -> bool:
    """Fill `folder` with mmdebstrap. Return whether that succeeded."""
    archives = cache.ROOT / "archives" / recipe.suite
    archives.mkdir(parents=True, exist_ok=True)
    into = '"$1"/var/cache/apt/archives/'
    # Archives get their names when they are complete, since another tree may be copying them.
    keep = '[ -e "$kept/$deb" ] || { cp "$deb" "$kept/$deb.$$" && mv "$kept/$deb.$$" "$kept/$deb"; } || exit'
    done = subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=important",
            f"--include={','.join(recipe.packages)}",
            # A mirror that was not updated for a week is accepted, too; the signatures of sid are still verified.
            *(["--aptopt=Acquire::Check-Valid-Until false"] if recipe.suite == "sid" else []),
            # Packages come from and go to the folder of archives, so that a changed recipe downloads only new ones.
            "--skip=download/empty",
            "--skip=essential/unlink",
            f"--setup-hook=mkdir -p {into} && find {quote(str(archives))} -name '*.deb' -exec cp -t {into} {{}} +",
            *(f"--essential-hook={hook}" for hook in recipe.hooks),
            f"--customize-hook=kept={quote(str(archives))}; cd {into} && for deb in *.deb; do {keep}; done",
            recipe.suite,
            str(folder),
            mirror,
        ],
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode == 0


def host_mirror() -> str:
    """Return the mirror of Debian's main archive that this machine's apt uses, else Debian's public default."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(COMPONENT)", "Created-By: Packages"],
        check=False,
        capture_output=True,
        text=True,
    )
    for line in listed.stdout.splitlines():
        origin, uri, component = line.split("|")
        if (origin, component) == ("Debian", "main") and not uri.rstrip("/").endswith("security"):
            return uri.rstrip("/")
    return DEFAULT_MIRROR
