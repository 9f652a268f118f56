"""The whole way with the real vLLM: apt install, edit the configuration, start, ask, a new limit, stop, purge, and nothing is left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import engine, quick_engine, tiny_model
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

CONFIG_FILE = "/etc/vllm-safe/config.yaml"
MIB = 1 << 20
# Paths that the installation of any package changes, or that change by themselves; and the model, which is the user's.
NOT_OURS = re.compile(rf"/(var/(log|tmp|cache|lib/(dpkg|apt|systemd|private))|root|tmp|etc/(passwd|group|g?shadow)-?)(/|$)|{engine.MODEL}")


@pytest.fixture(scope="module")
def bed(deb: Path) -> Iterator[Nspawn]:
    with Nspawn(network=False, layers=quick_engine.layers(deb)) as bed:
        yield bed


def _files(bed: Nspawn) -> set[str]:
    return {path for path in bed.out("find / -xdev").splitlines() if not NOT_OURS.match(path)}


def _answer(bed: Nspawn, prompt: str) -> str:
    question = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": 100, "temperature": 0})
    ask = ["curl", "--silent", "--show-error", "--fail-with-body", "--json", "@-", "http://127.0.0.1:8000/v1/completions"]
    text: str = json.loads(bed.run(ask, stdin=question).stdout)["choices"][0]["text"]
    return text


def test_from_apt_install_to_purge(bed: Nspawn, deb: Path) -> None:
    before = {path for path in _files(bed) if not path.startswith("/var/lib/vllm-safe")}  # the engine lies ready below the package

    bed.install(deb)
    assert bed.out("systemctl list-units --plain --no-legend 'vllm*'") == ""
    assert not bed.exists("/swapfile")

    bed.write(CONFIG_FILE, engine.CONFIG)
    bed.run("systemctl start vllm@demo", timeout=600)
    prompt = tiny_model.SENTENCE[:15]
    assert prompt + _answer(bed, prompt) == tiny_model.SENTENCE
    assert '"id":"demo"' in bed.out("curl --silent http://127.0.0.1:8000/v1/models")

    bed.write(CONFIG_FILE, f"{engine.CONFIG}    limits:\n      memory_max: 6000M\n      tasks_max: 1234\n")
    bed.run("systemctl restart vllm@demo", timeout=600)
    shown = bed.properties("vllm@demo", "MemoryMax", "TasksMax", "NeedDaemonReload", "ActiveState")
    assert shown == {"MemoryMax": str(6000 * MIB), "TasksMax": "1234", "NeedDaemonReload": "no", "ActiveState": "active"}

    bed.run("systemctl stop vllm@demo", timeout=120)
    assert bed.run("pgrep --list-full --uid vllm", check=False).stdout == ""
    assert bed.out("find /dev/shm /tmp -mindepth 1 -user vllm") == ""

    bed.run("vllm-safe check", check=False)
    assert bed.out("find /usr/lib/vllm-safe -name '*.pyc'")  # root's own runs leave byte code, which no package list knows
    bed.run("apt-get purge --yes vllm-safe", timeout=300)
    assert _files(bed) - before == set()
    assert not bed.exists("/usr/lib/vllm-safe")
    assert bed.out("find /run /var/lib/systemd /var/cache -name '*vllm*'") == ""
    assert bed.out("systemctl list-units --all --plain --no-legend --state=loaded 'vllm*'") == ""
    assert bed.properties("system.slice", "MemoryMin") == {"MemoryMin": "0"}
    assert bed.failed_units() == ""
