"""The fake libnvidia-ml.so.1 of tests/fakes/nvml.c, compiled with the compiler that `make venv` installs."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

RTX = "NVIDIA GeForce RTX 3060"
SOURCE = Path(__file__).parents[1] / "fakes/nvml.c"


def build_fake_nvml(folder: Path, without: Sequence[str] = ()) -> Path:
    """Return the folder with the library, for LD_LIBRARY_PATH. FAKE_NVML then names the file with its answers.

    without: words in the names of calls that it does not have, as an older library.
    """
    folder.mkdir(parents=True, exist_ok=True)
    functions = re.findall(r"\bnvml\w+(?=\()", SOURCE.read_text())
    renamed = [f"-D{name}=no_{name}" for name in functions if any(word in name for word in without)]
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", *renamed, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return folder


def load_fake_nvml(folder: Path) -> ctypes.CDLL:
    """Return the library of a folder that `build_fake_nvml` made, for this process."""
    return ctypes.CDLL(str(folder / "libnvidia-ml.so.1"))


def uuid_of(number: int) -> str:
    """Return the UUID of a card that `tell_cards` describes."""
    return f"GPU-00000000-0000-4000-8000-{number:012}"


def tell_cards(file: Path, *cards: str) -> None:
    """Have the library answer for one card after the other; each is its facts, in lines that replace those of an RTX 3060."""
    told = ["error 0", "driver 580.159.04", "cuda 13000"]
    for number, facts in enumerate(cards):
        usual = {
            "uuid": uuid_of(number),
            "power": "170 170 100 200",
            "persistence": "0",
            "forgets": "1",
            "memory": "12288 9000",
            "link": "1 3",
        }
        own = dict(line.strip().partition(" ")[::2] for line in facts.splitlines())
        first = f"{'lost' if own.pop('lost', '') else 'card'} 0000:{number + 1:02x}:00.0 {own.pop('name', RTX)}"
        told += [first, *(f"  {key} {value}" for key, value in (usual | own).items() if value != "none")]
    file.write_text("".join(f"{line}\n" for line in told))
