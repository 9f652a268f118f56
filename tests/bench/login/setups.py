"""What a user might pick to protect the machine, each as a machine of its own: packages, what is done once, how the hog is started."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from tests.beds.trees import VIRTUAL
from tests.beds.vm import Shape, Virtual

DEB = Path("dist/vllm-safe.deb")
PROBES = Path("vllm_safe/drill")
SWAP = 6 << 30
GUEST = "/opt/bench"
HOG = f"/usr/bin/python3 {GUEST}/hog.py"
FOLDER = "/run/vllm/hog"  # the hog's working folder, under every set-up
PLAN_EARLYOOM = "-m 5 -s 5 --avoid '(^| )(ssh|sshd|bash)( |$)' --prefer '(^| )(python3|vllm)( |$)'"
CONFIG = """
swap: {{size: 6G}}
models:
  hog:
    command: [{command}]
    port: 8000
"""


@dataclass(frozen=True)
class Setup:
    """`packages` of Debian beside the bed's own, `commands` run once as root, `properties` of the unit that the hog is started in."""

    name: str
    packages: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    hog: bool = True
    ours: bool = False

    def boot(self, memory: int, hogs: Collection[str]) -> Virtual:
        """A machine with `memory` MiB that is set up for these hogs, its disk still fast. The caller ends it."""
        recipe = replace(VIRTUAL, packages=(*VIRTUAL.packages, *self.packages))
        bed = Virtual(Shape(memory=memory, disk="16G", recipe=recipe))
        try:
            self._prepare(bed, hogs)
        except BaseException:
            bed.stop()
            raise
        return bed

    def _prepare(self, bed: Virtual, hogs: Collection[str]) -> None:
        here = Path(__file__).parent
        bed.run(f"mkdir -p {GUEST}/vllm_safe/drill /srv/hog && touch {GUEST}/vllm_safe/__init__.py")
        for source, target in [(here / name, GUEST) for name in ("hog.py", "inside.py")] + [
            (PROBES / name, f"{GUEST}/vllm_safe/drill") for name in ("__init__.py", "probes.py", "heartbeat.py")
        ]:
            bed.put(source, f"{target}/{source.name}")
        if "reader" in hogs:  # it reads three times the RAM; never a hole, which would be read without the disk
            size = int(bed.out("awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo")) * 3 // 4
            bed.run(f"for i in 1 2 3 4; do head -c {size}M /dev/zero | tr '\\0' x > /srv/hog/$i; done; sync", timeout=900)
        bed.run("systemctl disable --now earlyoom", check=False)  # the bed's own; who wants it turns it on
        if self.ours:
            bed.install(DEB)
            bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(command="/bin/true"))
            bed.run("systemctl enable --now earlyoom; vllm-safe swap create; vllm-safe apply", timeout=300)
        else:
            bed.run(f"fallocate -l {SWAP} /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile")
        for command in self.commands:
            bed.run(command, timeout=300)

    def start(self, bed: Virtual, kind: str, ram: int, seconds: float) -> None:
        """Start the hog, without waiting."""
        command = f"{HOG} {kind} {ram} {seconds:.0f}"
        if self.ours:
            words = ", ".join(command.split())
            bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(command=words))
            bed.run("systemctl start --no-block vllm@hog", timeout=120)
            return
        same = {"User": "nobody", "RuntimeDirectory": "vllm/hog", "WorkingDirectory": FOLDER, "LimitMEMLOCK": "infinity"}
        words = " ".join(f"--property={name}={value}" for name, value in {**same, **self.properties}.items())
        bed.run(f"systemd-run --quiet --collect --no-block --unit=hog {words} {command}", timeout=120)

    @property
    def unit(self) -> str:
        """The hog's unit."""
        return "vllm@hog.service" if self.ours else "hog.service"


PLAN = MappingProxyType({"MemoryMax": "90%", "MemorySwapMax": str(SWAP * 9 // 10), "OOMScoreAdjust": "1000"})
EARLYOOM_FILE = f"cat > /etc/default/earlyoom <<'END'\nEARLYOOM_ARGS=\"{PLAN_EARLYOOM}\"\nEND\nsystemctl enable --now earlyoom"
PRESSURE = MappingProxyType({"ManagedOOMMemoryPressure": "kill", "ManagedOOMMemoryPressureLimit": "60%"})
SETUPS = {
    setup.name: setup
    for setup in (
        Setup("idle", hog=False),
        Setup("nothing"),
        Setup("plan", commands=(EARLYOOM_FILE,), properties=PLAN),
        Setup("earlyoom", commands=("systemctl enable --now earlyoom",)),
        Setup("oomd", packages=("systemd-oomd",), commands=("systemctl enable --now systemd-oomd",)),
        Setup("oomd-pressure", packages=("systemd-oomd",), commands=("systemctl enable --now systemd-oomd",), properties=PRESSURE),
        Setup("nohang", packages=("nohang",), commands=("systemctl enable --now nohang",)),
        Setup("nohang-desktop", packages=("nohang",), commands=("systemctl enable --now nohang-desktop",)),
        Setup("vllm-safe", ours=True),
    )
}
