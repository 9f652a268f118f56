"""The disk of an emulated machine: a cached tree and additions, written as ext4 without a mount or a loop device."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.beds import cache, trees
from tests.beds.machine import TIED

NETWORK = """auto lo eth0
iface lo inet loopback
iface eth0 inet static
    address 10.0.2.15/24
    gateway 10.0.2.2
"""
# At boot, udev asks only about the devices that are used: for the others and their modules an emulated CPU takes many seconds.
USED = " ".join(f"--subsystem-match={name}" for name in ("block", "net", "virtio", "virtio-ports"))
TRIGGER = f"[Service]\nExecStart=\nExecStart=-udevadm trigger --action=add {USED}\n"
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\nbed /bed 9p trans=virtio,version=9p2000.L,msize=131072,nofail,x-systemd.automount 0 0\n",
    "etc/hostname": "bed\n",
    "etc/hosts": "127.0.0.1 localhost bed\n",
    "etc/network/interfaces": NETWORK,
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    # The command channel survives whatever a test does to the machine.
    "etc/systemd/system/qemu-guest-agent.service.d/bed.conf": "[Service]\nOOMScoreAdjust=-1000\nMemoryMin=16M\nCPUWeight=1000\n",
    "etc/ssh/sshd_config.d/bed.conf": "PermitRootLogin prohibit-password\nUseDNS no\n",
    "etc/systemd/system/systemd-udev-trigger.service.d/bed.conf": TRIGGER,
}
# No job may run by itself during a measurement.
MASKED = (
    "e2scrub_reap.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "man-db.timer",
    "dpkg-db-backup.timer",
)
# What this machine has nothing for: each boot and each daemon-reload starts all generators.
GENERATORS = ("cryptsetup", "getty", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local", "run", "system-update", "veritysetup")
# The tree is not changed: the additions are mounted over it in a mount namespace of their own, which ends with the command.
WRITE = 'mount -t overlay overlay -o "$0" "$1" && exec mkfs.ext4 -q -L bed -E lazy_itable_init=0,lazy_journal_init=0 -d "$1" "$2"'


@dataclass(frozen=True)
class Image:
    """A disk to copy, the kernel and initrd to boot it with, and the key for root's login."""

    disk: Path
    kernel: Path
    initrd: Path
    key: Path


def image(recipe: trees.Recipe, size: str) -> Image:
    """Return the cached image of `recipe` with a disk of `size` (in truncate's format, such as "10G")."""
    tree = trees.tree(recipe)
    recipe_of_image = repr((sorted(FILES.items()), MASKED, GENERATORS, WRITE, size))
    digest = hashlib.sha256(recipe_of_image.encode()).hexdigest()[:12]
    folder = cache.cached("images", f"{tree.name}-{digest}", lambda folder: _make(folder, tree, size))
    (kernel,) = tree.glob("boot/vmlinuz-*")
    (initrd,) = tree.glob("boot/initrd.img-*")
    return Image(folder / "disk", kernel, initrd, folder / "id_ed25519")


def _make(folder: Path, tree: Path, size: str) -> None:
    key = folder / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bed", "-f", str(key)], check=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        upper, work, root = (Path(scratch, name) for name in ("upper", "work", "root"))
        for made in (upper / "bed", work, root):
            made.mkdir(parents=True)
        for name, text in FILES.items():
            path = upper / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for unit in MASKED:
            (upper / "etc/systemd/system" / unit).symlink_to("/dev/null")
        generators = upper / "etc/systemd/system-generators"
        generators.mkdir()
        for name in GENERATORS:
            (generators / f"systemd-{name}-generator").symlink_to("/dev/null")
        ssh = upper / "root/.ssh"
        ssh.mkdir(parents=True)
        (ssh / "authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
        for private in (upper / "root", ssh):
            private.chmod(0o700)
        for extra in upper.rglob("*"):
            if extra.is_dir() and not extra.is_relative_to(upper / "root"):
                extra.chmod(0o755)
        upper.chmod(0o755)
        options = f"lowerdir={tree},upperdir={upper},workdir={work}"
        subprocess.run(["truncate", f"--size={size}", folder / "disk"], check=True)
        namespace = [*TIED, "unshare", "--mount", "--propagation", "private"]
        subprocess.run([*namespace, "sh", "-c", WRITE, options, str(root), str(folder / "disk")], check=True)
