"""Findings on the hardware around the cards, and on the kernel's settings for its memory."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_safe.common.findings import Finding, passed, warned
from vllm_safe.common.sizes import format_size
from vllm_safe.host.rig_facts import HardwareFacts


def check_hardware(rig: HardwareFacts) -> Iterator[Finding]:
    """Yield the findings."""
    yield _processor(rig)
    yield _modules(rig)
    if rig.huge_pages:
        yield _huge_pages(rig)
    if rig.portable and not rig.stays_awake:
        yield warned(
            "this is a laptop: closing it suspends the machine, and a model does not survive that",
            "Set HandleLidSwitch=ignore in /etc/systemd/logind.conf, and reboot. GPU and processor share their cooling: both get hotter.",
        )
    if rig.resume and not rig.no_hibernation:
        yield _hibernation(rig)


def _processor(rig: HardwareFacts) -> Finding:
    if not rig.cores:
        return passed(f"processor: {rig.threads or 'an unknown number of'} CPUs; the kernel does not tell which of them share a core")
    cores = f"processor: {rig.cores} {'core' if rig.cores == 1 else 'cores'}"
    return passed(f"{cores}, {rig.threads} hyper-threads" if rig.threads > rig.cores else f"{cores}, no hyper-threads")


def _modules(rig: HardwareFacts) -> Finding:
    if rig.modules is None:
        if rig.hidden:
            return warned("RAM: only root can read how its modules are placed", "Run: sudo vllm-safe check")
        return passed("RAM: neither firmware nor kernel tells how its modules are placed")
    filled = [module for module in rig.modules if module.size]
    sizes = sorted({module.size for module in filled})
    speed = {module.speed for module in filled if module.speed}
    each = " and ".join(map(format_size, sizes))
    what = f"RAM: {len(filled)} {'module' if len(filled) == 1 else 'modules'} of {each}" + (f" at {min(speed)} MT/s" if speed else "")
    names = {module.channel for module in rig.modules if module.channel}
    short = {name: name.rpartition(" ")[2] for name in names}  # without the processor, where there is only one
    if len(set(short.values())) < len(names):
        short = {name: name for name in names}
    channels = sorted({short[module.channel] for module in filled if module.channel})
    if not channels:
        return passed(f"{what}; the firmware does not tell their channels")
    free = sorted(set(short.values()) - set(channels))
    where = f"in {len(channels)} {'channel' if len(channels) == 1 else 'channels'} ({', '.join(channels)})"
    if free:
        what = f"{what} {where}, none in channel {', '.join(free)}"
        hint = "NCCL without peer-to-peer, and loading, are as fast as RAM: spread the modules over the channels (see the board's manual)."
        return warned(what, hint)
    return passed(f"{what} {where}")


def _huge_pages(rig: HardwareFacts) -> Finding:
    what = f"transparent huge pages: {rig.huge_pages}" + (f" (defrag: {rig.defrag})" if rig.defrag else "")
    if rig.huge_pages == "always" and rig.defrag == "always":  # Documentation/admin-guide/mm/transhuge.rst, "defrag"
        what = "transparent huge pages: each process waits until the kernel has made room for one (defrag is always)"
        return warned(what, "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag")
    return passed(what)


def _hibernation(rig: HardwareFacts) -> Finding:
    where = f"a file on {rig.resume}" if rig.resume_offset else rig.resume
    what = f"hibernation is set up ({where}): it needs swap that a model may have filled, and a model does not survive it"
    return warned(what, "systemctl mask hibernate.target hybrid-sleep.target suspend-then-hibernate.target")
