"""How the swapfile of the config comes to be there and on, or none of ours is. Decided from what is there: so a broken-off run completes.

A file that is swapped to can be neither renamed nor deleted. A new size is therefore made at the second name (`/swapfile.new`) while the
old file is on. If what is swapped out fits in RAM, the old one is turned off, deleted, and the new one takes its name; else the new one
is turned on first and keeps the second name until it is off, after the next boot. Both names are good; the one that suits is kept.
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

_MARGIN = 0.1  # of RAM, that stays available when swapped out memory comes back
_STOP = "Stop the models first (systemctl stop 'vllm@*'), or free RAM."


def decide_swap(swap: settings.Swap, host: Host, facts: SwapFacts) -> tuple[Step, ...]:
    """The steps to the swapfile that `swap` asks for; none when it is on. Raises Failure, with the way out, when it cannot be had."""
    if swap.size is None:
        return ()

    # Is it there? Of ours all but one file is surplus: an old size, an old place, what a broken-off run left.
    size = swap.size // PAGE * PAGE
    state = _State(host, facts)
    names = (facts.path, second_name(facts.path))
    good = [file for file in state.ours if file.path in names and file.size == size]
    keep = max(good, key=lambda file: (state.is_on(file), file.path == facts.path), default=None)
    surplus = [file for file in state.ours if file is not keep]
    if keep and state.is_on(keep):
        return _retire(surplus, state) if state.fits(surplus) else ()  # more swap than asked for harms nobody: a later run has it fit

    if any(area.path == str(facts.path) and area.size == size - PAGE for area in host.swaps):
        return ()  # made by somebody else, exactly as asked for

    # Have a file of that size that is not on yet. What holds nothing makes room first.
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

    # Change over to it.
    if not state.fits(busy, arriving=size):
        raise _unfit(busy, state, f" and the new {format_size(size)} of swap")
    if state.fits(busy):  # off before on: the new file has its own name at once
        steps += _retire(busy, state)
        busy = []
    if path != facts.path and all(file.path != facts.path for file in busy):
        steps.append(RenameSwapfile(path, facts.path))
        path = facts.path
    return (*steps, TurnOn(path), *_retire(busy, state))


def _way(size: int, host: Host, facts: SwapFacts) -> SwapfileMethod:
    """How the file is made. Raises Failure when that, or turning it on, cannot work here at all."""
    if foreign := next((file for file in facts.files if file.foreign and file.path == facts.path), None):
        if foreign.foreign == UNREADABLE:
            raise Failure(f"only root can tell whether {facts.path} is a swapfile of vllm-safe", hint="Run it as root.")
        hint = "Move it away, set `swap.file` to another path, or `swap.size: none` to use the swap that is on."
        raise Failure(f"{facts.path} exists and was not made by vllm-safe ({foreign.foreign}): left as it is", hint=hint)
    if size < MINIMUM:
        raise Failure(f"a swapfile of {size} bytes is too small", hint="Set `swap.size` to 1M or more, or to none.")
    way = swapfile_method(host, facts)
    if not facts.permitted:
        raise not_permitted()
    return way


def decide_remove(host: Host, facts: SwapFacts) -> tuple[Step, ...]:
    """The steps that take away every swapfile of ours. Raises Failure when what is swapped out fits nowhere else."""
    state = _State(host, facts)
    if not state.fits(state.ours):
        raise _unfit(state.ours, state)
    return _retire(state.ours, state)


def _place(size: int, keep_free: Amount, state: _State, idle: Sequence[CandidateFile], busy: Sequence[CandidateFile]) -> tuple[Path, bool]:
    """Where the new file is made, and whether while `busy` are still there. Raises Failure when there is no room either way."""
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
    """What is said when what is swapped out to `leaving` has no other place."""
    used, available = format_size(state.used(leaving)), format_size(state.host.memory_available)
    limit = "; a MemoryMax may let nothing back in" if state.facts.bound else ""
    return Failure(f"{used} are swapped out and do not fit in RAM ({available} available{limit}){more}", hint=_STOP)


def _retire(files: Iterable[CandidateFile], state: _State) -> tuple[Step, ...]:
    """Turn off, where on, and delete."""
    steps: list[Step] = []
    for file in files:
        steps += [TurnOff(file.path), DeleteSwapfile(file.path)] if state.is_on(file) else [DeleteSwapfile(file.path)]
    return tuple(steps)


@dataclass(frozen=True)
class _State:
    """What is there, as the rules ask for it."""

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
        """Bytes of those `files` that are on the file system of `path`."""
        return sum(file.size for file in files if self.host.mount_of(file.path) == self.host.mount_of(path))

    def fits(self, leaving: Iterable[CandidateFile], *, arriving: int = 0) -> bool:
        """Whether what is swapped out to `leaving` has a place without them: in other swap (and `arriving` bytes more), else in RAM.

        RAM counts only while nothing with a MemoryMax is swapped out: its limit may not let that back in, and the kernel would kill it.
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
