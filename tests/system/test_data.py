"""Values of config.yaml reach programs as data: under a real systemd, through YAML, launch file, unit and exec, byte for byte."""

from __future__ import annotations

import json
import random

import pytest

from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

# Says what it was given, serves its health URL, and ends when it is told to.
PROGRAM = """
import http.server, json, os, sys
with open(os.environ["TOLD"], "w") as file:
    json.dump({"argv": sys.argv[2:], "env": dict(os.environ)}, file)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
HOSTILE = [
    "$(reboot)",
    "; id > /tmp/pwned",
    "`id`",
    "${HOME}",
    "$HOME",
    "%n",
    "%i %h %%",
    "a\nExecStart=/bin/false",
    "'",
    '"',
    "\\",
    "\\n",
    "a  b",
    "\t",
    "#x",
    "-rf",
    "--port=1",
    "*",
    "~root",
    "é \u2028 \U0001f600",
    "[x]",
    "{x: y}",
    "no",
    "0x10",
    "1e3",
    "null",
    "..",
    "&",
    "|| true",
]
NAMES = ["$(reboot)", "; id", "%n", "a b", "a\nb", "a'b", 'a"b', "../x", "-x", "a/b", "é", "`id`", "a;b", "a\\b"]


def _fuzzed() -> list[str]:
    """Return the strings above and mixtures of them. The seed is fixed, so that a failure can be reproduced."""
    dice = random.Random(5)  # noqa: S311 - no secret
    return HOSTILE + ["".join(dice.choices(HOSTILE, k=dice.randint(2, 5))) for _ in range(40)]


def _as_yaml(tree: dict[str, object]) -> str:
    """JSON is YAML, but for U+2028, a line break there; and YAML has no pairs of surrogates. autopkgtest's machine has no PyYAML."""
    return json.dumps(tree, ensure_ascii=False).replace("\u2028", "\\u2028")


def test_arguments_and_variables_arrive_as_they_are_written(nspawn_installed: Nspawn) -> None:
    bed, words = nspawn_installed, _fuzzed()
    bed.write("/opt/told.py", PROGRAM)
    env = {f"WORD_{number}": word for number, word in enumerate(words)} | {"TOLD": "/run/vllm/data/told.json"}
    model = {"command": ["/usr/bin/python3", "/opt/told.py", "8001", *words], "port": 8001, "health": "http://127.0.0.1:8001/", "env": env}
    bed.write("/etc/vllm-safe/config.yaml", _as_yaml({"swap": {"size": "none"}, "models": {"data": model}}))
    bed.run("systemctl start vllm@data", check=True)
    told = json.loads(bed.read("/run/vllm/data/told.json"))
    assert told["argv"] == words
    assert {key: value for key, value in told["env"].items() if key.startswith("WORD_")} == {k: v for k, v in env.items() if k != "TOLD"}
    assert not bed.exists("/tmp/pwned")  # noqa: S108 - where a shell would have written
    bed.run("systemctl stop vllm@data", check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_be_anything_else_is_refused_with_its_place(nspawn_installed: Nspawn, name: str) -> None:
    bed = nspawn_installed
    bed.write("/etc/vllm-safe/config.yaml", json.dumps({"models": {name: {"command": ["/bin/true"], "port": 8001}}}))
    check = bed.run(["vllm-safe", "check"], check=False)
    assert (check.returncode, check.stderr.startswith("/etc/vllm-safe/config.yaml:1:")) == (2, True)
    start = bed.run(["vllm-safe", "apply", "--dry-run", "--", name], check=False)
    assert "refusing the start" in start.stdout or "is not a valid model name" in start.stderr
    assert "Traceback" not in check.stderr + start.stdout + start.stderr
