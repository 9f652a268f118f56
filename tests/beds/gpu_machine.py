"""A Debian with a tiny vLLM for GPUs, and an NVML that says what it is told. It stands in for cards that this machine does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.beds import engine
from tests.beds.nspawn import Nspawn

FAKES = Path(__file__).parents[1] / "fakes"
TINY = "/srv/tiny"  # wheels
LOCK = "/usr/lib/vllm-safe/lib/python3/site-packages/vllm_safe/engine/locks/vllm.txt"
LIBRARY, TOLD = "/usr/local/lib/libnvidia-ml.so.1", "/etc/fake-nvml"


@contextmanager
def gpu_machine(deb: Path) -> Iterator[Nspawn]:
    """Boot it, with the wheels to install and without a driver."""
    with Nspawn(binds=[engine.wheels()], network=False) as bed:
        bed.install(deb)
        for name in ("tiny_engine.py", "nvml.c"):
            bed.put(FAKES / name, f"/root/{name}")
        bed.run(f"python3 /root/tiny_engine.py {TINY} && cp {engine.WHEELS}/uv-*.whl {TINY} && cp {TINY}/cards.txt {LOCK}")
        yield bed


def tell(bed: Nspawn, *card: str, error: int = 0, driver: str = "580.95.05", cuda: int = 13000) -> None:
    """Have NVML say so from now on. card: facts about its one card, such as "capability 8.6"; unset, that alone, of an H200."""
    facts = card or ("capability 9.0",)
    bed.write(TOLD, "\n".join([f"error {error}", f"driver {driver}", f"cuda {cuda}", "card 0000:01:00.0 Fake", *facts]) + "\n")
    bed.run(f"gcc -shared -fPIC -o {LIBRARY} /root/nvml.c && ldconfig")
