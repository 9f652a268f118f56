"""The fake libnvidia-ml.so.1 of tests/fakes/nvml.c, compiled with the compiler that `make venv` installs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

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
