"""Root trees of Debian, made by mmdebstrap and kept by what is in them."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import astuple, dataclass
from pathlib import Path
from shlex import quote

from tests.beds import cache

DEFAULT_MIRROR = "http://deb.debian.org/debian"

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
# For a machine of its own: the stock kernel, since the cloud kernel has no 9p, and the file systems that a swapfile may meet.
MACHINE = ("btrfs-progs", "dosfstools", "e2fsprogs", "kmod", "linux-image-amd64", "qemu-guest-agent", "xfsprogs")


@dataclass(frozen=True)
class Recipe:
    """What a tree is made of; two equal recipes share one tree."""

    packages: tuple[str, ...]
    suite: str = "bookworm"
    hooks: tuple[str, ...] = ()  # shell commands run before the packages are installed, with the tree as $1


CONTAINER = Recipe((*BASE, *COMPILER))
# An initrd of 60 MB takes an emulated processor many seconds to unpack; this one has what the disk needs.
SMALL_INITRD = (
    'mkdir -p "$1"/etc/initramfs-tools/conf.d "$1"/usr/share/initramfs-tools/modules.d',
    'echo MODULES=list > "$1"/etc/initramfs-tools/conf.d/bed',
    'for module in virtio_pci virtio_blk ext4; do echo $module; done > "$1"/usr/share/initramfs-tools/modules.d/bed',
)
VIRTUAL = Recipe((*BASE, *MACHINE), hooks=SMALL_INITRD)


def tree(recipe: Recipe) -> Path:
    """The root tree of `recipe`, read only for its users; made in half a minute when it is not cached.

    Raises CalledProcessError with mmdebstrap's words above it on stderr.
    """
    return cache.cached("trees", f"{recipe.suite}-{_digest(recipe)}", lambda folder: _make(recipe, folder))


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(repr(astuple(recipe)).encode()).hexdigest()[:12]


def _make(recipe: Recipe, folder: Path) -> None:
    archives = cache.ROOT / "archives" / recipe.suite
    archives.mkdir(parents=True, exist_ok=True)
    into = '"$1"/var/cache/apt/archives/'
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=important",
            f"--include={','.join(recipe.packages)}",
            # Packages come from and go to our folder of archives: a changed recipe downloads only what is new.
            "--skip=download/empty",
            "--skip=essential/unlink",
            f"--setup-hook=mkdir -p {into} && find {quote(str(archives))} -name '*.deb' -exec cp -t {into} {{}} +",
            *(f"--essential-hook={hook}" for hook in recipe.hooks),
            f"--customize-hook=cp -n {into}*.deb {quote(str(archives))}",
            recipe.suite,
            str(folder),
            host_mirror(),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    folder.chmod(0o755)


def host_mirror() -> str:
    """The mirror of Debian's main archive that this machine's apt is set to, else Debian's public default."""
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
