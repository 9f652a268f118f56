"""A bundle of a model that ran, from the journal of a real machine with a name, a person and their secrets."""

from __future__ import annotations

import pytest

from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

HOST, PERSON, TOKEN, VALUE = "tower-of-alice", "wonderland", "hf_AbCdEfGhIjKlMnOpQrStUvWx", "looking-glass"
SAYS = f"a request of {PERSON} from 10.1.2.3 on {HOST} with {TOKEN}; /home/{PERSON}/models, {VALUE}"
SERVER = f"""\
#!/bin/sh
echo "{SAYS}" >&2
exec /usr/bin/python3 -m http.server --bind 127.0.0.1 8000
"""
CONFIG = f"""\
swap: {{size: none}}
models:
  demo: {{command: [/usr/local/bin/server], port: 8000, health: "http://127.0.0.1:8000/", env: {{OTHER: {VALUE}}}}}
"""
PARTS = ("this machine", "What a start would run", "Why it last stopped", "The last run over time", "The journal of it")


def test_a_bundle_tells_what_happened_and_not_to_whom(nspawn_installed: Nspawn) -> None:
    bed = nspawn_installed
    bed.run(f"hostname {HOST} && useradd --create-home {PERSON}", check=True)
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    bed.write("/usr/local/bin/server", SERVER)
    bed.run("chmod 755 /usr/local/bin/server", check=True)
    bed.run("systemctl start vllm@demo", check=True, timeout=60)
    bed.run("systemctl stop vllm@demo", check=True, timeout=60)
    bed.wait_for("the run's end", lambda: bed.run("ls /var/lib/vllm-safe/runs/demo/*/end.json", check=False).returncode == 0, timeout=60)
    assert TOKEN in bed.out("journalctl --unit vllm@demo"), "it is in the journal"
    bed.run("cd /root && vllm-safe bundle demo -o b.txt", check=True, timeout=120)
    assert bed.out("stat -c '%a %U' /root/b.txt") == "600 root"
    text = bed.read("/root/b.txt")
    for word in (HOST, PERSON, TOKEN, VALUE, "10.1.2.3"):
        assert word not in text, word
    for words in (*PARTS, "a request of", "Started vllm@demo.service", "[user]", "[host]", "[address]", "[removed]"):
        assert words in text, words
    again = bed.run("cd /root && vllm-safe bundle demo -o b.txt", check=False, timeout=120)
    assert (again.returncode, "b.txt exists" in again.stderr) == (1, True)
    other = bed.run("cd /tmp && setpriv --reuid nobody --clear-groups vllm-safe bundle demo -o -", check=True, timeout=120).stdout
    assert "none: there is nothing, or this user may not read it" in other
    assert TOKEN not in other
