"""The set-ups that a user might choose to protect the machine, each as a machine of its own: packages, commands, and the start of the hog.

Each set-up is verified: its `checks` run once after the boot and again beside each hog, and a check that fails ends the measurement.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from tests.beds.machine import BedError
from tests.beds.trees import VIRTUAL
from tests.beds.vm import Shape, Virtual
from tests.bench import loading

DEB = Path("dist/vllm-safe.deb")
PROBES = Path("vllm_safe/drill")
SWAP = 6 << 30
GUARD = "vllm-safe-guard.service"
GUEST = "/opt/bench"
PROGRAM = "tests/bench/login/{}.py"  # here, and below GUEST
HOGS = ("anonymous", "leak", "reader", "forkbomb", "mlock")  # of hog.py
LOADS = ("load", "load-vllm")  # of load_hog.py
FOLDER = "/run/vllm/hog"  # the hog's working folder, under every set-up
PROGRESS = f"{FOLDER}/progress"  # the hog's count
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
    """One set-up: Debian `packages` beside the bed's own, `commands` run once as root, and `properties` of the hog's unit.

    `running`: those of DAEMONS that run; no others do. `checks`: shell commands that succeed only if the set-up is as it should be.
    """

    name: str
    packages: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    running: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    hog: bool = True
    ours: bool = False

    def boot(self, memory: int, hogs: Collection[str]) -> Virtual:
        """Boot a machine with `memory` MiB and prepare it for these hogs. Its disk is not throttled yet. The caller stops it."""
        recipe = replace(VIRTUAL, packages=(*VIRTUAL.packages, *self.packages))
        bed = Virtual(Shape(memory=memory, cpus=2, disk="16G", recipe=recipe))
        try:
            self._prepare(bed, hogs)
            self.check(bed)
            if self.hog:
                self._rehearse(bed)
        except BaseException:
            bed.stop()
            raise
        return bed

    def _prepare(self, bed: Virtual, hogs: Collection[str]) -> None:
        bed.run(f"mkdir -p {GUEST}/vllm_safe/drill /srv/hog && touch {GUEST}/vllm_safe/__init__.py")
        bed.put(Path(__file__).with_name("inside.py"), f"{GUEST}/inside.py")
        for name in ("__init__.py", "login_probes.py", "heartbeat.py"):
            bed.put(PROBES / name, f"{GUEST}/vllm_safe/drill/{name}")
        put_hogs(bed)
        if set(LOADS) & set(hogs):
            bed.run(loading.MAKE, timeout=600)
        if "reader" in hogs:  # it reads three times the RAM; no holes, which would be read without the disk
            size = int(bed.out("awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo")) * 3 // 4
            bed.run(f"for i in 1 2 3 4; do head -c {size}M /dev/zero | tr '\\0' x > /srv/hog/$i; done; sync", timeout=900)
        bed.run(f"systemctl disable --now {' '.join(DAEMONS)}", check=False)  # both the bed's own and those that Debian starts by itself
        if self.ours:
            bed.install(DEB)
            bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(command="/bin/true"))
            bed.run("systemctl enable --now earlyoom && vllm-safe swap create && vllm-safe apply", timeout=300)
        else:
            bed.run(f"fallocate -l {SWAP} /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile")
        for command in self.commands:
            bed.run(command, timeout=300)

    def check(self, bed: Virtual) -> None:
        """Raise BedError unless the machine is set up as it should be."""
        found = bed.run(["systemctl", "is-active", *DAEMONS], check=False, timeout=120).stdout.split()
        active = tuple(name for name, state in zip(DAEMONS, found, strict=True) if state == "active")
        if active != self.running:
            raise BedError(f"{self.name}: {active} run instead of {self.running}")
        for command in (SWAP_IS_ON, *self.checks):
            if (done := bed.run(command, check=False, timeout=120)).returncode:
                raise BedError(f"{self.name} is not what it says: {command}\n{done.stdout}{done.stderr}")

    def _rehearse(self, bed: Virtual) -> None:
        """Run a harmless hog once, while the disk is fast: it must count, have its limits, and end."""
        self.start(bed, "anonymous", 64 << 20, 60)
        bed.wait_for("the hog runs", lambda: bed.exists(PROGRESS), timeout=120)
        self._check_hog(bed)
        self.end(bed)
        self.wait_gone(bed)

    def _check_hog(self, bed: Virtual) -> None:
        """Raise BedError unless the running hog has its limits, and the guard runs beside it where it should."""
        wanted = dict(self.properties)
        if self.ours:
            bed.wait_for("the guard watches", lambda: "watching" in bed.properties(GUARD, "StatusText")["StatusText"], timeout=120, pause=1)
            wanted = {}  # its main process sets its oom_score_adj, which is not a property of the unit
        shown = bed.properties(self.unit, "MemoryMax", *wanted)
        limited = shown.pop("MemoryMax") != "infinity"
        wanted.pop("MemoryMax", None)
        # systemd shows a percentage as a fraction of 2^32.
        same = all(
            shown[name] == value or (value.endswith("%") and abs(int(shown[name]) / 2**32 - float(value[:-1]) / 100) < 1e-3)
            for name, value in wanted.items()
        )
        if not same or limited != (self.ours or "MemoryMax" in self.properties):
            raise BedError(f"{self.name}: the hog has {shown}, limited {limited}, instead of {wanted}")
        if "ManagedOOMMemoryPressure" in wanted:
            bed.wait_for("systemd-oomd watches the hog", lambda: self.unit in bed.out("oomctl"), timeout=30, pause=1)

    def start(self, bed: Virtual, kind: str, ram: int, seconds: float) -> None:
        """Start the hog, without waiting."""
        command = hog_command(kind, ram, seconds)
        if self.ours:
            words = ", ".join(command.split())
            bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(command=words))
            bed.run("systemctl start --no-block vllm@hog", timeout=120)
            return
        same = {"User": "nobody", "RuntimeDirectory": "vllm/hog", "WorkingDirectory": FOLDER, "LimitMEMLOCK": "infinity"}
        bed.run("systemctl reset-failed", check=False, timeout=120)  # so that the unit name of the last cell's hog is free
        words = " ".join(f"--property={name}={value}" for name, value in {**same, **self.properties}.items())
        bed.run(f"systemd-run --quiet --collect --no-block --unit=hog {words} {command}", timeout=120)

    def end(self, bed: Virtual, timeout: float = 300) -> bool:
        """End the hog at once, without waiting. Return whether it ran until then and had not been restarted."""
        end = f"systemctl kill --signal=KILL {self.unit}; systemctl stop --no-block {self.unit}"
        shown = bed.run(f"systemctl show --property=SubState,NRestarts {self.unit}; {end}", check=False, timeout=timeout).stdout.split()
        return bool({"SubState=running", "SubState=start"} & set(shown)) and not any(
            line.startswith("NRestarts=") and line != "NRestarts=0" for line in shown
        )

    def wait_gone(self, bed: Virtual) -> None:
        """Wait until nothing of the hog is left. Raises BedError if something stays."""
        over = {"inactive", "failed"}
        bed.wait_for("the hog has gone", lambda: bed.properties(self.unit, "ActiveState")["ActiveState"] in over, timeout=120, pause=1)
        bed.wait_for("its folder has gone", lambda: not bed.exists(PROGRESS), timeout=30)

    @property
    def unit(self) -> str:
        """The hog's unit."""
        return "vllm@hog.service" if self.ours else "hog.service"


def put_hogs(bed: Virtual) -> None:
    """Copy the programs of the hogs, and the modules that they import, to the machine."""
    loading.put_readers(bed, GUEST)
    bed.run(["mkdir", "--parents", f"{GUEST}/{Path(PROGRAM).parent}"])
    for name in ("hog", "load_hog"):
        bed.put(Path(PROGRAM.format(name)), f"{GUEST}/{PROGRAM.format(name)}")


def hog_command(kind: str, ram: int, seconds: float) -> str:
    """Return the command line of a hog."""
    program = PROGRAM.format("hog" if kind in HOGS else "load_hog")
    return f"/usr/bin/python3 {GUEST}/{program} {kind} {ram} {seconds:.0f}"


DAEMONS = ("earlyoom", "systemd-oomd", "nohang", "nohang-desktop")
SWAP_IS_ON = f"test $(swapon --show=SIZE --bytes --noheadings) -ge $(({SWAP} - 4096))"
PLAN = MappingProxyType({"MemoryMax": "90%", "MemorySwapMax": str(SWAP * 9 // 10), "OOMScoreAdjust": "1000"})
EARLYOOM_FILE = f"cat > /etc/default/earlyoom <<'END'\nEARLYOOM_ARGS=\"{PLAN_EARLYOOM}\"\nEND\nsystemctl enable --now earlyoom"
PRESSURE = MappingProxyType({"ManagedOOMMemoryPressure": "kill", "ManagedOOMMemoryPressureLimit": "60%"})


def _command_line(of: str, *words: str) -> tuple[str, ...]:
    """Return checks that the running process, not only a file, has each of these words in its command line."""
    return tuple(f"tr '\\0' ' ' < /proc/$(systemctl show --value -p MainPID {of})/cmdline | grep -F -e \"{word}\"" for word in words)


def _oomd(*more: str) -> tuple[str, ...]:
    """Return checks that systemd-oomd has its defaults: for swap, and for the root slice as Debian ships it."""
    return (
        "oomctl | grep -F 'Swap Used Limit: 90.00%'",
        "oomctl | grep -F 'Default Memory Pressure Duration: 20s'",
        "systemctl show -- -.slice -p ManagedOOMSwap | grep -Fx ManagedOOMSwap=kill",
        *more,
    )


def _nohang(name: str) -> tuple[str, ...]:
    """Return checks that the running nohang has read this profile, as Debian ships it."""
    file = f"/etc/nohang/{name}.conf"
    return (*_command_line(name, file), f"cmp {file} /usr/share/nohang/{name}.conf")


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("idle", hog=False),
        Setup("nothing"),
        Setup(
            "plan", commands=(EARLYOOM_FILE,), properties=PLAN, running=("earlyoom",), checks=_command_line("earlyoom", "-m 5 -s 5 --avoid")
        ),
        Setup(
            "earlyoom",
            commands=("systemctl enable --now earlyoom",),
            running=("earlyoom",),
            checks=_command_line("earlyoom", "earlyoom -r 3600"),
        ),
        Setup(
            "oomd",
            packages=("systemd-oomd",),
            commands=("systemctl enable --now systemd-oomd",),
            running=("systemd-oomd",),
            checks=_oomd(),
        ),
        Setup(
            "oomd-pressure",
            packages=("systemd-oomd",),
            commands=("systemctl enable --now systemd-oomd",),
            properties=PRESSURE,
            running=("systemd-oomd",),
            checks=_oomd(),
        ),
        Setup(
            "nohang",
            packages=("nohang",),
            commands=("systemctl enable --now nohang",),
            running=("nohang",),
            checks=(*_nohang("nohang"), "grep -E '^ *psi_checking_enabled *= *False' /etc/nohang/nohang.conf"),
        ),
        Setup(
            "nohang-desktop",
            packages=("nohang",),
            commands=("systemctl enable --now nohang-desktop",),
            running=("nohang-desktop",),
            checks=(*_nohang("nohang-desktop"), "grep -E '^ *psi_checking_enabled *= *True' /etc/nohang/nohang-desktop.conf"),
        ),
        Setup(
            "vllm-safe",
            ours=True,
            running=("earlyoom",),
            checks=(*_command_line("earlyoom", "VLLM::"), "test $(systemctl show --value -p MemoryMin system.slice) -gt 100000000"),
        ),
    )
}
