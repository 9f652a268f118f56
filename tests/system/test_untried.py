"""`vllm-safe install` before and after the driver of the cards: a tiny vLLM for cards, and an NVML that says what it is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import engine
from tests.beds.gpu_machine import LIBRARY, TINY, TOLD, gpu_machine, tell
from tests.beds.machine import Completed
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

MODEL = "/srv/models/tiny"
UNTRIED = "/var/lib/vllm-safe/untried"
CONFIG = f"""\
swap: {{size: none}}
engine: {{find_links: {TINY}}}
models:
  tiny: {{model: {MODEL}}}
"""


@pytest.fixture(scope="module")
def machine(deb: Path) -> Iterator[Nspawn]:
    with gpu_machine(deb) as bed:
        bed.run(f"mkdir -p {MODEL} && echo '{{}}' > {MODEL}/config.json")
        bed.write("/etc/vllm-safe/config.yaml", CONFIG)
        yield bed


@pytest.fixture
def bed(machine: Nspawn) -> Nspawn:
    """Reset the machine: no driver, no engine and no run."""
    machine.run("systemctl stop vllm@tiny; systemctl reset-failed", check=False)
    machine.run(f"rm -rf {engine.ENGINES}/current {engine.ENGINES}/previous {engine.ENGINES}/vllm-* {UNTRIED} /var/lib/vllm-safe/runs/*")
    machine.run(f"rm -f {LIBRARY} {TOLD} && ldconfig")
    return machine


def install(bed: Nspawn, *words: str) -> Completed:
    done = bed.run(["vllm-safe", "install", *words], check=False, timeout=300)
    assert "Traceback" not in done.stderr
    return done


def checked(bed: Nspawn, word: str) -> str:
    """Return the line of `vllm-safe check` that has the word, or ""."""
    return next((line for line in bed.run(["vllm-safe", "check"], check=False).stdout.splitlines() if word in line), "")


def current(bed: Nspawn) -> str:
    return bed.run(f"readlink {engine.ENGINES}/current", check=False).stdout.strip()


def test_before_the_driver_it_is_put_in_place_untried(bed: Nspawn) -> None:
    done = install(bed)
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: no NVIDIA driver is installed.*\n  .*non-free.*nvidia-open \(580 or newer\)", done.stderr)
    assert "vllm 0.32.0 is in use, but untried. The first start with a GPU tries it. To try it now: vllm-safe install --try" in done.stdout
    assert current(bed) == "vllm-0.32.0"
    assert bed.out(f"stat --format='%U %a' {UNTRIED}") == "root 644"
    assert checked(bed, "untried").strip().startswith("warn  vllm 0.32.0 is untried")
    assert "no NVIDIA driver" in checked(bed, "NVIDIA")

    again = install(bed)
    assert (again.returncode, "is installed, but untried" in again.stdout) == (0, True)
    tried = install(bed, "--try")
    assert tried.returncode == 1
    assert tried.stderr.startswith("vllm-safe: vllm 0.32.0 cannot be tried: no NVIDIA driver is installed")
    assert checked(bed, "untried")


def test_the_first_start_that_gets_ready_is_the_trial(bed: Nspawn) -> None:
    assert install(bed).returncode == 0
    failed = bed.run("systemctl start vllm@tiny", check=False, timeout=120)
    assert failed.returncode != 0  # there is no card yet
    bed.run("systemctl stop vllm@tiny", check=False, timeout=60)
    assert checked(bed, "untried")

    tell(bed)
    bed.run("systemctl start vllm@tiny", timeout=120)
    assert "is untried" in bed.out("journalctl --boot --unit vllm@tiny --output cat")
    bed.wait_for("the record of it", lambda: not checked(bed, "untried"))
    assert checked(bed, "vllm 0.32.0 is installed").strip().startswith("pass")
    assert checked(bed, "/dev/shm of its own").strip().startswith("pass")  # noqa: S108 - of the unit
    assert checked(bed, "GPU 0: Fake, compute capability 9.0").strip().startswith("pass")
    assert bed.exists(UNTRIED)
    bed.run("systemctl restart vllm@tiny", timeout=120)
    assert not bed.exists(UNTRIED)
    bed.run("systemctl stop vllm@tiny", timeout=60)


def test_try_tries_it_and_says_what_is_broken(bed: Nspawn) -> None:
    assert install(bed).returncode == 0
    tell(bed)
    command = f"{engine.ENGINES}/current/lib/python3.11/site-packages/vllm/command.py"
    bed.run(f"mv {command} {command}.away")
    broken = install(bed, "--try")
    assert broken.returncode == 1
    assert "could not try vllm 0.32.0: vllm --version: ModuleNotFoundError: No module named 'vllm.command'" in broken.stderr
    assert bed.exists(UNTRIED)

    bed.run(f"mv {command}.away {command}")
    done = install(bed, "--try")
    assert (done.returncode, done.stdout) == (0, "vllm 0.32.0 works.\n")
    assert not bed.exists(UNTRIED)
    assert install(bed).stdout == "vllm 0.32.0 is installed and works. To rebuild it: vllm-safe install --reinstall\n"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (([], "550.163.01", 12040), "NVIDIA driver 550.163.01 supports CUDA 12.4, but this vLLM is built for CUDA 13.0"),
        ((["capability 6.1"], "580.95.05", 13000), "too old: Fake (6.1)"),
    ],
)
def test_what_can_never_work_is_said_before_anything_is_fetched(bed: Nspawn, told: tuple[list[str], str, int], words: str) -> None:
    card, driver, cuda = told
    tell(bed, *card, driver=driver, cuda=cuda)
    before = bed.out(f"ls -A {engine.ENGINES}")
    done = install(bed)
    assert done.returncode == 1
    assert done.stderr.startswith("vllm-safe: ")
    assert words in done.stderr
    assert bed.out(f"ls -A {engine.ENGINES}") == before
    assert words in checked(bed, words)
    assert checked(bed, words).strip().startswith("fail")


def test_one_that_works_is_not_given_up_for_one_that_cannot_be_tried(bed: Nspawn) -> None:
    tell(bed)
    assert install(bed).returncode == 0
    assert not bed.exists(UNTRIED)
    tell(bed, error=18)
    done = install(bed, "--reinstall")
    assert done.returncode == 1
    assert "vllm 0.32.0 cannot be tried, so vllm 0.32.0, which works, stays in use: the NVIDIA driver was upgraded" in done.stderr
    assert "  Reboot." in done.stderr
    assert current(bed) == "vllm-0.32.0"


def test_a_broken_download_is_found_without_a_card_too(bed: Nspawn) -> None:
    assert install(bed).returncode == 0
    bed.run(f"rm -r {engine.ENGINES}/current/lib/python3.11/site-packages/vllm/entrypoints")
    done = install(bed)
    assert done.returncode == 0
    assert "does not work: rebuilding it" in done.stderr
    assert current(bed) == "vllm-0.32.0-2"
    assert checked(bed, "untried")
    assert bed.out(f"cat {UNTRIED}").startswith('{"vllm-0.32.0-2": ')


def test_a_purge_leaves_no_mark(bed: Nspawn) -> None:
    assert install(bed).returncode == 0
    bed.run("apt-get purge --yes vllm-safe", timeout=300)
    assert not bed.exists(UNTRIED)
