"""Measurements in the guest, with the drill's own probes: `inside.py FILE PROGRESS` appends CSV lines to FILE until it is killed."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # vllm_safe/drill/login_probes.py is copied beside this file
from vllm_safe.drill import login_probes


def time_program() -> float | None:
    """Time one fork and exec of a program that is not cached. Return seconds, or None if it failed."""
    return login_probes.time_command((str(login_probes.RARE), "--version"), login_probes.RARE)


def progress(path: Path) -> int | None:
    """Return the count of all processes of the hog since its start; None when there is no hog."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return sum(number for (number,) in struct.iter_unpack("=Q", text[: len(text) // 8 * 8]))


def main() -> None:
    """Append lines `time,what,value`: Unix seconds, and the fields of a ProbeSample."""
    offset = time.time() - time.monotonic()
    with (
        Path(sys.argv[1]).open("a", buffering=1) as file,
        login_probes.LoginWatch({"program": time_program}) as watch,
    ):
        written = failed = 0
        while True:
            time.sleep(1.0)
            for sample in watch.samples[written:]:
                file.write(f"{sample.at + offset:.3f},{sample.what},{sample.value:.4f}\n")
                written += 1
            for sample in watch.failed[failed:]:
                file.write(f"{sample.at + offset:.3f},failed {sample.what},{sample.value:.4f}\n")
                failed += 1
            if (done := progress(Path(sys.argv[2]))) is not None:
                file.write(f"{time.time():.3f},progress,{done}\n")


if __name__ == "__main__":
    main()
