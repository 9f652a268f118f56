"""Decision on the steps that create and turn on the configured swapfile, or remove the swapfiles of vllm-safe.

It depends only on the present state, so that a later run completes an interrupted one.

An active swapfile can be neither renamed nor deleted. A file of a new size is therefore made under the second name (`/swapfile.new`) while
the old one is on. If the swapped out memory fits in RAM, the old file is turned off and deleted, and the new one takes its name. Otherwise
the new file is turned on first, and keeps the second name until it is off, after the next boot. Both names are valid; whichever file has
the right size is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import Amount, format_size
from vllm_safe.common.steps import Step
from vllm_safe.config import settings
from vllm_safe.host.host_facts import Host, SwapArea
from vllm_safe.swap.swap_place import MINIMUM, SwapfileMethod, lack_of_room, swapfile_method
from vllm_safe.swap.swapfile_facts import PAGE, UNREADABLE, CandidateFile, SwapFacts, second_name
from vllm_safe.swap.swapfile_steps import DeleteSwapfile, MakeSwapfile, RenameSwapfile, TurnOff, TurnOn, not_permitted

_MARGIN = 0.1  # share of RAM that must stay available when swapped out memory is read back
_STOP = "Stop the models first (systemctl stop 'vllm@*'), or free RAM."


def decide_swap(swap: settings.Swap, host: Host, facts: SwapFacts) -> tuple[Step, ...]:
    """Return the steps to the swapfile that `swap` asks for; none if it is on. Raises Failure with a hint if it is not possible."""
    if swap.size is None:
        return ()

    # Find the file to keep. All other swapfiles of vllm-safe are surplus: of an old size, at an old path, or left by an interrupted run.
    size = swap.size // PAGE * PAGE
    state = _State(host, facts)
    names = (facts.path, second_name(facts.path))
    good = [file for file in state.ours if file.path in names and file.size == size]
    keep = max(good, key=lambda file: (state.is_on(file), file.path == facts.path), default=None)
    surplus = [file for file in state.ours if file is not keep]
    if keep and state.is_on(keep):
        return _retire(surplus, state) if state.fits(surplus) else ()  # surplus swap does no harm: a later run removes it

    if any(area.path == str(facts.path) and area.size == size - PAGE for area in host.swaps):
        return ()  # another program made it exactly as requested

    # Provide a file of that size that is not on yet. Files that are off are deleted first, to make room.
    way = _way(size, host, facts)
    busy = [file for file in surplus if state.is_on(file)]
    idle = [file for file in surplus if not state.is_on(file)]
    steps: list[Step] = list(_retire(idle, state))
    if keep:
        path = keep.path
    else:
        path, alongside = _place(size, swap.keep_free, state, idle, busy)
        make = MakeSwapfile(path, size, nocow=way.nocow, write=way.write)
        if not alongside:
            return (*steps, *_retire(busy, state), make, TurnOn(path))
        steps.append(make)

    # Switch over to it.
    if not state.fits(busy, arriving=size):
        raise _unfit(busy, state, f" and the new {format_size(size)} of swap")
    if state.fits(busy):  # turn off first, so that the new file gets its final name at once
        steps += _retire(busy, state)
        busy = []
    if path != facts.path and all(file.path != facts.path for file in busy):
        steps.append(RenameSwapfile(path, facts.path))
        path = facts.path
    return (*steps, TurnOn(path), *_retire(busy, state))


def _way(size: int, host: Host, facts: SwapFacts) -> SwapfileMethod:
    """Decide how the file is made. Raises Failure if making it, or turning it on, cannot work here at all."""
    if foreign := next((file for file in facts.files if file.foreign and file.path == facts.path), None):
        if foreign.foreign == UNREADABLE:
            raise Failure(f"only root can read whether {facts.path} is a swapfile of vllm-safe", hint="Run it as root.")
        hint = "Move the file away, set `swap.file` to another path, or set `swap.size: none` to use the swap that is active."
        raise Failure(f"{facts.path} exists and was not made by vllm-safe ({foreign.foreign}): left as it is", hint=hint)
    if size < MINIMUM:
        raise Failure(f"a swapfile of {size} bytes is too small", hint="Set `swap.size` to 1M or more, or to none.")
    way = swapfile_method(host, facts)
    if not facts.permitted:
        raise not_permitted()
    return way


def decide_remove(host: Host, facts: SwapFacts) -> tuple[Step, ...]:
    """Return the steps that remove every swapfile of vllm-safe. Raises Failure if the swapped out memory fits nowhere else."""
    state = _State(host, facts)
    if not state.fits(state.ours):
        raise _unfit(state.ours, state)
    return _retire(state.ours, state)


def _place(size: int, keep_free: Amount, state: _State, idle: Sequence[CandidateFile], busy: Sequence[CandidateFile]) -> tuple[Path, bool]:
    """Decide where the new file is made, and whether beside `busy`. Raises Failure if there is no room either way."""
    path = state.facts.path
    taken = {file.path for file in (*busy, *(file for file in state.facts.files if file.foreign))}
    free_name = next((each for each in (path, second_name(path)) if each not in taken), None)
    freed = state.size_beside(path, idle)
    lack = lack_of_room(size, keep_free, state.facts, freed=freed)
    if free_name and not lack:
        return free_name, True
    if busy:
        lack = lack_of_room(size, keep_free, state.facts, freed=freed + state.size_beside(path, busy))
    if lack:
        raise lack
    if not state.fits(busy):
        raise _unfit(busy, state, ", and the disk has no room for the new swapfile beside the old one")
    return path, False


def _unfit(leaving: Sequence[CandidateFile], state: _State, more: str = "") -> Failure:
    """Return the failure to report if the memory swapped out to `leaving` fits nowhere else."""
    used, available = format_size(state.used(leaving)), format_size(state.host.memory_available)
    limit = "; a MemoryMax= limit may prevent reading it back" if state.facts.bound else ""
    return Failure(f"{used} are swapped out and do not fit in RAM ({available} available{limit}){more}", hint=_STOP)


def _retire(files: Iterable[CandidateFile], state: _State) -> tuple[Step, ...]:
    """Return the steps that turn files off, if they are on, and delete them."""
    steps: list[Step] = []
    for file in files:
        steps += [TurnOff(file.path), DeleteSwapfile(file.path)] if state.is_on(file) else [DeleteSwapfile(file.path)]
    return tuple(steps)


@dataclass(frozen=True)
class _State:
    """The present state, with the questions that the rules ask."""

    host: Host
    facts: SwapFacts

    @property
    def ours(self) -> list[CandidateFile]:
        return [file for file in self.facts.files if not file.foreign]

    def area(self, file: CandidateFile) -> SwapArea | None:
        return next((area for area in self.host.swaps if area.path == str(file.path)), None)

    def is_on(self, file: CandidateFile) -> bool:
        return self.area(file) is not None

    def used(self, files: Iterable[CandidateFile]) -> int:
        return sum(area.used for file in files if (area := self.area(file)))

    def size_beside(self, path: Path, files: Iterable[CandidateFile]) -> int:
        """Return the total bytes of those `files` that are on the file system of `path`."""
        return sum(file.size for file in files if self.host.mount_of(file.path) == self.host.mount_of(path))

    def fits(self, leaving: Iterable[CandidateFile], *, arriving: int = 0) -> bool:
        """Decide whether the memory swapped out to `leaving` fits elsewhere: in other swap plus `arriving` bytes, otherwise in RAM.

        RAM counts only while no cgroup with a MemoryMax= has memory swapped out: reading it back could exceed the limit, and the kernel
        would kill the cgroup.
        """
        leaving = list(leaving)
        used = self.used(leaving)
        paths = {str(file.path) for file in leaving}
        others = [area for area in self.host.swaps if area.path not in paths and not area.path.startswith("/dev/zram")]  # zram is RAM
        used -= min(used, arriving + sum(area.size - area.used for area in others))
        if used == 0:
            return True
        room = self.host.memory_available - self.host.memory * _MARGIN
        return self.facts.bound == 0 and used <= room
