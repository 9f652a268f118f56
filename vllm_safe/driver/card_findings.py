"""Findings on each card and its link, where the driver answers. Cards of which the same is true share a line.

The speed of a link is not judged: an idle card lowers it. Its width stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from vllm_safe.common.findings import Finding, passed, warned
from vllm_safe.common.sizes import MIB, format_size
from vllm_safe.driver.card_facts import CardProcess, NvmlCard, PciCard, Slowdown
from vllm_safe.driver.driver_facts import Driver

_Key = TypeVar("_Key")
_UNSEEN = 256 * MIB  # more than an idle card uses for itself
_HOT = 5  # °C below the temperature at which a card slows itself down
# nvml.h, nvmlGpuP2PStatus_t
_REFUSED: Mapping[int | None, str] = {
    1: "the chipset does not support it",
    2: "the driver does not allow it for these GPUs",
    3: "they are behind different root complexes",
    4: "it is disabled in the driver's settings (NVreg_RegistryDwords)",
    5: "the driver does not support it",
}
_SLOWED = {
    Slowdown.HEAT: "heat",
    Slowdown.HEAT_HARDWARE: "heat",
    Slowdown.POWER_BRAKE: "the power supply, which asks for it",
    Slowdown.HARDWARE: "heat or power",
}
_Trouble = tuple[Callable[..., Finding], str, str]  # how it is told, what it is, and what to do
_FINE: _Trouble = (passed, "", "")
_RESET = "Reset it (nvidia-smi -r while nothing uses it), or reboot."


def name_cards(numbers: Iterable[int]) -> str:
    """Return "card 3", "cards 0 and 2" or "cards 0-7"."""
    found = sorted(numbers)
    if len(found) == 1:
        return f"GPU {found[0]}"
    if len(found) > 2 and found[-1] - found[0] == len(found) - 1:
        return f"GPUs {found[0]}-{found[-1]}"
    return f"GPUs {', '.join(map(str, found[:-1]))} and {found[-1]}"


def _group(cards: Sequence[NvmlCard], key: Callable[[NvmlCard], _Key]) -> dict[_Key, list[int]]:
    """Return the numbers of the cards that respond, by what `key` says of them."""
    found = dict[_Key, list[int]]()
    for index, card in enumerate(cards):
        if card.capability > (0, 0):
            found.setdefault(key(card), []).append(index)
    return found


def check_each_card(driver: Driver) -> Iterator[Finding]:
    """Yield the findings on the cards. Where the driver does not answer, that is a finding of its own, and why these are missing."""
    if not driver.answers:
        yield passed("the GPUs themselves are not examined, as their driver does not answer")
        return
    links = {card.address: card for card in driver.pci}
    for check in (_what_they_are, _others, _modules, _links, _peers, _memory_errors, _power, _heat, _screens, _persistence, _use):
        yield from check(driver, links)


Links = Mapping[str, PciCard]


def _what_they_are(driver: Driver, links: Links) -> Iterator[Finding]:
    def words(card: NvmlCard) -> str:
        said = [f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}"]
        said += [f"{format_size(card.memory)}"] if card.memory else []
        said += [f"BAR1 {format_size(card.bar1)}"] if card.bar1 else []
        said += ["no ECC" if card.ecc is None else f"ECC {'on' if card.ecc else 'off'}"]
        link = links.get(card.pci, PciCard(""))
        said += [f"PCIe {_width(link)}"] if link.lanes else ["PCIe width unknown"]
        return ", ".join(said)

    groups = _group(driver.nvml.cards, words)
    for text, numbers in groups.items():
        yield passed(f"{name_cards(numbers)}: {text}")
    names = {(card.name, card.memory) for card in driver.nvml.cards if card.capability > (0, 0)}
    if len(names) > 1:
        yield passed("the GPUs are unlike: a model that is split over them gets of each what the smallest has, and waits for the slowest")


def _width(link: PciCard) -> str:
    most = [f"{whose} x{lanes}" for whose, lanes in (("GPU", link.card_lanes), ("slot", link.slot_lanes)) if lanes]
    return f"x{link.lanes}" + (f" ({', '.join(most)})" if most else "")


def _others(driver: Driver, _: Links) -> Iterator[Finding]:
    """Find cards that another driver has, while NVIDIA's has the rest."""
    for card in driver.pci:
        if card.driver not in {"", "nvidia"}:
            what = f"the GPU {card.address} is bound to {card.driver}, not to the NVIDIA driver: no model can use it"
            yield warned(what, f"If it is not for a screen or a virtual machine: blacklist {card.driver} in /etc/modprobe.d, and reboot.")


def _modules(driver: Driver, _: Links) -> Iterator[Finding]:
    if driver.modules and "nvidia_uvm" not in driver.modules:
        what = "the kernel module nvidia-uvm is not loaded, without which CUDA does not start"
        yield warned(what, "vllm-safe-nvidia.service loads it before a model, if nvidia-modprobe is installed: apt install nvidia-modprobe")


def _links(driver: Driver, links: Links) -> Iterator[Finding]:
    def link(card: NvmlCard) -> PciCard:
        return links.get(card.pci, PciCard(""))

    def less(card: NvmlCard) -> tuple[int, int]:
        found = link(card)
        most = min((lanes for lanes in (found.card_lanes, found.slot_lanes) if lanes), default=0)
        return (found.lanes, most) if 0 < found.lanes < most else (0, 0)

    for (lanes, most), numbers in _group(driver.nvml.cards, less).items():
        if lanes:
            what = f"{name_cards(numbers)}: the PCIe link has x{lanes}, although GPU and slot have x{most}"
            yield warned(what, "A riser or an adapter does that, and so does a GPU that is not fully in its slot: reseat it.")


def _peers(driver: Driver, links: Links) -> Iterator[Finding]:
    """Find whether the cards reach each other's memory, without which NCCL goes through RAM."""
    pairs = driver.nvml.pairs
    if not pairs:
        return
    reach = [pair for pair in pairs if pair.access == 0]
    fast = [pair for pair in reach if pair.nvlink]
    if not reach:
        why = dict.fromkeys(_REFUSED.get(pair.access, "the driver does not say why") for pair in pairs)
        what = f"no GPU reaches another's memory (peer-to-peer): {'; '.join(why)}. NCCL goes through RAM"
        yield passed(f"{what}; with `disable-custom-all-reduce: true`, vLLM does not probe for it")
        return
    how = "over NVLink" if len(fast) == len(reach) else f"{len(fast)} over NVLink, the others over PCIe" if fast else "over PCIe"
    which = "all GPUs" if len(reach) == len(pairs) else f"{len(reach)} of {len(pairs)} pairs of GPUs"
    yield passed(f"{which} reach each other's memory (peer-to-peer), {how}: NCCL uses it")
    used = {number for pair in reach if not pair.nvlink for number in (pair.first, pair.second)}
    behind = [number for number in sorted(used) if links.get(driver.nvml.cards[number].pci, PciCard("")).translated]
    if behind:  # NCCL's documentation, troubleshooting, "PCI Access Control Services (ACS)"
        what = f"{name_cards(behind)}: the IOMMU translates their transfers, with which peer-to-peer over PCIe is slow or hangs"
        yield warned(what, "Boot with iommu=pt on the kernel command line, or set NCCL_P2P_DISABLE: '1' in the model's env.")


def _memory_errors(driver: Driver, _: Links) -> Iterator[Finding]:
    for trouble in (_ecc_change, _memory_trouble):
        for (level, what, do_next), numbers in _group(driver.nvml.cards, trouble).items():
            if what:
                yield level(f"{name_cards(numbers)}: {what}", *([do_next] if do_next else []))


def _ecc_change(card: NvmlCard) -> _Trouble:
    if card.ecc is None or card.ecc == card.ecc_after_reboot:
        return _FINE
    return (warned, f"ECC will be turned {'on' if card.ecc_after_reboot else 'off'} by the next reset", _RESET)


def _memory_trouble(card: NvmlCard) -> _Trouble:
    if card.spares_exhausted:
        return (warned, "the memory has errors, and no spare rows are left for them", "Have it replaced.")
    if card.replacement_pending:
        return (warned, "a part of the memory had errors, and is replaced by the next reset", _RESET)
    if card.uncorrected:
        times = "1 error" if card.uncorrected == 1 else f"{card.uncorrected} errors"
        what = f"{times} of the memory that ECC could not correct, since the driver was loaded"
        return (warned, what, f"{_RESET} If it happens again, have it replaced.")
    if card.replaced:
        return (
            passed,
            f"{card.replaced} parts of the memory were replaced for good; no error since the driver was loaded",
            "",
        )
    return _FINE


def _power(driver: Driver, _: Links) -> Iterator[Finding]:
    def share(card: NvmlCard) -> str:
        if not card.power_limit:
            return ""
        of = f", {card.power_limit / card.power_default:.0%} of the default".replace("%", " %") if card.power_default else ""
        return f"{card.power_limit / 1000:.0f} W{of}"

    groups = _group(driver.nvml.cards, share)
    told = {text: numbers for text, numbers in groups.items() if text}
    limits = [card.power_limit for card in driver.nvml.cards if card.power_limit]
    if not told:
        yield passed("power: the driver tells no limit")
        return
    total = f"; {sum(limits) / 1000:.0f} W in all, which the power supply must bear" if len(limits) > 1 else ""
    each = "; ".join(f"{name_cards(numbers)} at most {text}" for text, numbers in told.items())
    yield passed(f"power: {each}{total}")


def _heat(driver: Driver, _: Links) -> Iterator[Finding]:
    known = [card.temperature for card in driver.nvml.cards if card.temperature is not None]
    if not known:
        yield passed("temperature: the driver tells none")
        return
    for index, card in enumerate(driver.nvml.cards):
        reasons = dict.fromkeys(words for reason, words in _SLOWED.items() if card.slowed_by & reason)
        now = f" at {card.temperature} °C" if card.temperature is not None else ""
        if reasons:
            less = f", or lower its power limit: gpu: {{power_limit: {{{index}: 75%}}}}" if card.power_limit else ""
            yield warned(f"GPU {index} is slowed down{now} by {next(iter(reasons))}", f"Cool it better{less}")
        elif card.temperature is not None and card.slowdown_temperature and card.temperature > card.slowdown_temperature - _HOT:
            most = f"it slows itself down at {card.slowdown_temperature} °C"
            yield warned(f"GPU {index} is hot:{now.removeprefix(' at')}, and {most}", "Look after its fan and the air around it.")
    span = f"{min(known)}" if min(known) == max(known) else f"{min(known)} to {max(known)}"
    limits = sorted({card.slowdown_temperature for card in driver.nvml.cards if card.slowdown_temperature})
    slow = f"; they slow down at {' or '.join(map(str, limits))} °C" if limits else ""
    if not any(card.slowed_by & sum(_SLOWED) for card in driver.nvml.cards):
        yield passed(f"temperature: {span} °C{slow}; nothing slows them now")


def _screens(driver: Driver, _: Links) -> Iterator[Finding]:
    lit = [index for index, card in enumerate(driver.nvml.cards) if card.display]
    if lit:
        what = f"{name_cards(lit)} drives a screen: the desktop takes memory of it, and stalls while a model computes"
        yield warned(
            what, "Connect the screen to the processor's own graphics, or do without a desktop: systemctl isolate multi-user.target"
        )


def _persistence(driver: Driver, _: Links) -> Iterator[Finding]:
    off = [index for index, card in enumerate(driver.nvml.cards) if card.persistence is False and not card.processes and not card.display]
    if off:
        what = f"persistence mode is off ({name_cards(off)}): a GPU that nothing uses is initialised anew by each first use, for seconds"
        yield warned(what, "apt install nvidia-persistenced; without it: nvidia-smi -pm 1, after each boot")


def _use(driver: Driver, _: Links) -> Iterator[Finding]:
    """Find who uses the memory of the cards."""
    seen = False
    for index, card in enumerate(driver.nvml.cards):
        yield from (_used(index, process) for process in card.processes)
        unseen = card.used - sum(process.memory for process in card.processes)
        if unseen > _UNSEEN and all(process.memory for process in card.processes):
            what = f"GPU {index}: {format_size(unseen)} of its memory are used by processes that cannot be seen from here"
            yield warned(what, "Look for containers and virtual machines that have the GPU; a reset of the GPU frees what nobody owns.")
            seen = True
    if not seen and not any(card.processes for card in driver.nvml.cards):
        yield passed("no process uses a GPU")


def _used(index: int, process: CardProcess) -> Finding:
    size = format_size(process.memory) if process.memory else "memory"
    what = f"GPU {index}: {size} used by {process.program or 'a process that cannot be seen from here'} (pid {process.pid})"
    if process.unit.startswith("vllm@"):
        return passed(f"{what} of {process.unit}")
    stop = f"systemctl stop {process.unit}" if process.unit.endswith(".service") else f"end it (kill {process.pid})"
    return warned(f"{what}{f' of {process.unit}' if process.unit else ''}", f"To have it for a model: {stop}")
